"""The command of :mod:`llmshearing.data_prep.demo_corpus`, by the path that the README names."""

from llmshearing.data_prep.demo_corpus import main

if __name__ == "__main__":
    main()
