"""Composer checkpoints to Hugging Face folders: ``python -m llmshearing.convert``.

``checkpoint`` reads, ``safetensors`` writes, ``folder`` adds what surrounds the weights, ``commands`` ties them.
Nothing here imports Composer or transformers: a conversion starts in about two seconds and needs no GPU.
"""
