"""Random numbers that depend on what they are for, and on nothing else: not on ranks, restarts or other draws."""

from __future__ import annotations

import torch

from llmshearing.data.permutation import derive_key


def generator(purpose: str, *numbers: int) -> torch.Generator:
    """A generator on the CPU for ``purpose`` and ``numbers``, such as a seed of any size and a step.

    All of them are hashed: torch's CPU generator keeps only the low 32 bits of what it is seeded with.
    """
    return torch.Generator().manual_seed(derive_key(purpose, *numbers))
