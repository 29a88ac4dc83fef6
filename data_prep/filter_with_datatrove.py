"""The command of :mod:`llmshearing.data_prep.filter_with_datatrove`, by the path that the docs name."""

from llmshearing.data_prep.filter_with_datatrove import main

if __name__ == "__main__":
    main()
