"""The command of :mod:`llmshearing.data_prep.train_tokenizer`, by the path that the README names."""

from llmshearing.data_prep.train_tokenizer import main

if __name__ == "__main__":
    main()
