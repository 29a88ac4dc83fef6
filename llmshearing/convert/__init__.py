"""Composer checkpoints to Hugging Face folders: ``python -m llmshearing.convert``.

    single_file.py, sharded.py    a checkpoint as Composer wrote it -> checkpoint.py: config, masks, data state
    stored.py                     tensors that stay on disk, read some rows at a time
    layout.py                     the tensors of a model of the config: exactly these must be there
    commands.py                   shear, export: rows in, what is kept of them out
    output.py                     the folder to write, which appears complete or not at all
    weight_files.py, folder.py    weights and what surrounds them, written
    rotate.py, fit.py             a model turned before pruning; what is sheared, fitted to its source

Nothing but the last two imports transformers, and nothing Composer: a conversion starts in about two seconds and needs
no GPU.
"""
