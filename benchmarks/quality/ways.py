"""The ways to a model of the target shape that are compared, at equal numbers of training steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Way:
    """One row of the table.

    Args:
        title: for tables.
        pruning: settings of ``TargetedPruning``. ``None``: no pruning, random weights.
        stage: batches of the pruning run: ``'all'``, ``'search'`` (the source's), or a number. The sheared model is
            trained for those that are left.
        rotated: prune the source after ``convert rotate``.
        distillation: settings of ``SourceDistillation`` in all training of weights. ``None``: none.
    """

    title: str
    pruning: Mapping[str, Any] | None
    stage: str | int = "all"
    rotated: bool = False
    distillation: Mapping[str, Any] | None = None


_PAPER = {"warmup": "0.2dur"}
_SEARCH = {"search": "1dur"}
_IMPORTANCE = {"selection": "importance"}
_RANDOM = {"selection": "random"}
_TEACHER = {"weight": 0.5, "top_k": None, "dtype": "float32"}

WAYS = {
    "scratch": Way("target shape from random weights", None),
    "upstream": Way("learned, the original's constraint", {**_PAPER, "compat": "upstream", "lr_schedule": "follow"}),
    "paper": Way("learned, the paper's schedule", _PAPER),
    "search": Way("learned in a search on still weights", _SEARCH, "search"),
    "random": Way("random units", _RANDOM, 1),
    "importance": Way("importance", _IMPORTANCE, 8),
    "rotated-paper": Way("rotated; learned, the paper's schedule", _PAPER, rotated=True),
    "rotated-search": Way("rotated; learned in a search on still weights", _SEARCH, "search", rotated=True),
    "rotated-importance": Way("rotated; importance", _IMPORTANCE, 8, rotated=True),
    "importance-distilled": Way("importance; distilled", _IMPORTANCE, 8, distillation=_TEACHER),
    "rotated-importance-distilled": Way(
        "rotated; importance; distilled", _IMPORTANCE, 8, rotated=True, distillation=_TEACHER
    ),
}
