"""The command of :mod:`llmshearing.data_prep.prepare`, by the path that the README names."""

from llmshearing.data_prep.prepare import main

if __name__ == "__main__":
    main()
