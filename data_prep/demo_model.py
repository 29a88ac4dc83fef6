"""The command of :mod:`llmshearing.data_prep.demo_model`, by the path that the README names."""

from llmshearing.data_prep.demo_model import main

if __name__ == "__main__":
    main()
