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
        pruning: settings of ``TargetedPruning``. ``None``: no pruning run.
        stage: batches of the pruning run: a number, ``'all'``, a ``'third'`` of all, ``'search'`` (the source's), or
            ``'extra'``, half as many as all and on top of them. The sheared model is trained for those that are left.
        scored: shear the source by scores, see :mod:`llmshearing.pruning.scoring`. Without this and without
            ``pruning`` the model has random weights.
        even: keep layers evenly all the same.
        fitted: fit what is left, ``convert shear --fit``. Batches that scores and fits look at are counted.
        start: batches of choosing units by importance that come first; masks are then learned from that choice.
        untrained: what is sheared are the source's own weights, whatever the pruning run made of them.
        rotated: prune the source after ``convert rotate``.
        distillation: settings of ``SourceDistillation`` in all training of weights. ``None``: none.
    """

    title: str
    pruning: Mapping[str, Any] | None
    stage: str | int = "all"
    scored: bool = False
    even: bool = False
    fitted: bool = False
    start: int = 0
    untrained: bool = False
    rotated: bool = False
    distillation: Mapping[str, Any] | None = None

    @property
    def shears(self) -> bool:
        """Whether what is trained in the end was cut out of the source."""
        return self.scored or self.pruning is not None


_PAPER = {"warmup": "0.2dur"}
_SEARCH = {"search": "1dur"}
_IMPORTANCE = {"selection": "importance"}
_RANDOM = {"selection": "random"}
_TEACHER: dict[str, Any] = {"weight": 0.5, "top_k": None, "dtype": "float32"}

WAYS = {
    "scratch": Way("target shape from random weights", None),
    "upstream": Way("learned, the original's constraint", {**_PAPER, "compat": "upstream", "lr_schedule": "follow"}),
    "paper": Way("learned, the paper's schedule", _PAPER),
    "third": Way("learned for a third, then trained on", _PAPER, "third"),
    "start": Way("importance, then learned from there", _PAPER, start=8),
    "moving-search": Way("learned in a search on moving weights, source's weights", _PAPER, "search", untrained=True),
    "extra-search": Way("the same, in a longer search that is not counted", _PAPER, "extra", untrained=True),
    "search": Way("learned in a search on still weights", _SEARCH, "search"),
    "random": Way("random units", _RANDOM, 1),
    "importance": Way("importance", _IMPORTANCE, 8),
    "rotated-search": Way("rotated; learned in a search on still weights", _SEARCH, "search", rotated=True),
    "rotated-importance": Way("rotated; importance", _IMPORTANCE, 8, rotated=True),
    "importance-distilled": Way("importance; distilled", _IMPORTANCE, 8, distillation=_TEACHER),
    "rotated-importance-distilled": Way(
        "rotated; importance; distilled", _IMPORTANCE, 8, rotated=True, distillation=_TEACHER
    ),
    "scored": Way("scored", None, scored=True),
    "rotated-scored": Way("rotated; scored", None, scored=True, rotated=True),
    "rotated-importance-fitted": Way("rotated; importance; fitted", _IMPORTANCE, 8, rotated=True, fitted=True),
    "rotated-scored-fitted": Way("rotated; scored; fitted", None, scored=True, rotated=True, fitted=True),
    "rotated-even-fitted": Way(
        "rotated; scored, layers kept evenly; fitted", None, scored=True, even=True, rotated=True, fitted=True
    ),
    "rotated-scored-fitted-distilled": Way(
        "rotated; scored; fitted; distilled", None, scored=True, rotated=True, fitted=True, distillation=_TEACHER
    ),
    "rotated-scored-fitted-taught": Way(
        "rotated; scored; fitted; the teacher alone",
        None,
        scored=True,
        rotated=True,
        fitted=True,
        distillation={**_TEACHER, "weight": 1.0},
    ),
}
