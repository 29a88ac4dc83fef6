"""Instruction tuning of a sheared model: ``python -m llmshearing.tune MODEL CHATS --out FOLDER``.

    chats.py       a file of conversations -> messages, checked line by line
    template.py    how the tokenizer writes conversations, and the token that ends an answer
    encode.py      a conversation -> token ids, and which of them are an answer's
    settings.py    what can be chosen
    resume.py      the checkpoints beside the output: whose they are, and which is whole
    train.py       what trl and peft are given, and the folder that comes of it

trl and peft (``pip install 'llmshearing[tune]'``) do the training; they are imported when it begins.
"""
