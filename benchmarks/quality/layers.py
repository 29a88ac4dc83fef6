"""Layers that are kept evenly, whatever they are scored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from llmshearing.architecture.axes import LAYERS
from llmshearing.pruning.scores import Scores


def even_layers(number: int, kept: int) -> list[int]:
    """Indices of ``kept`` of ``number`` layers, the first and the last among them, as evenly as can be."""
    if kept == 1:
        return [0]
    return [(2 * place * (number - 1) + kept - 1) // (2 * (kept - 1)) for place in range(kept)]


def even_scores(number: int, kept: int) -> torch.Tensor:
    """Scores of ``number`` layers, (number,), of which :func:`even_layers` are the best."""
    scores = torch.zeros(number)
    scores[even_layers(number, kept)] = 1
    return scores


def with_even_layers(scores: Path, kept: int, out: Path) -> Path:
    """Write scores to ``out`` that keep layers evenly and all other units as ``scores`` does."""
    read = Scores.load(scores)
    layers = even_scores(read.source.num_hidden_layers, kept)
    replace(read, units={**read.units, LAYERS: layers}).save(out)
    return out
