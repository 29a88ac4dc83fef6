"""Composer checkpoints to Hugging Face folders: ``python -m llmshearing.convert``.

    single_file.py, sharded.py    a checkpoint as Composer wrote it -> checkpoint.py: config, masks, data state
    stored.py                     tensors that stay on disk, read some rows at a time
    layout.py                     the tensors that a model of the config has: exactly these must be there
    commands.py                   shear, export: rows in, what is kept of them out
    output.py                     the folder to write, which appears complete or not at all
    safetensors.py, folder.py     weights and what surrounds them, written

Nothing here imports Composer or transformers: a conversion starts in about two seconds and needs no GPU.
"""
