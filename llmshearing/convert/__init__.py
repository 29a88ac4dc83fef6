"""Composer checkpoints to Hugging Face folders: ``python -m llmshearing.convert``.

    checkpoint file     single_file.py  \                                     commands.py
                                         checkpoint.py: tensors on disk    ->  some rows at a time  ->  safetensors.py
    sharded checkpoint  sharded.py      /  (stored.py), config, masks          layout.py: complete?     folder.py

Nothing here imports Composer or transformers: a conversion starts in about two seconds and needs no GPU.
"""
