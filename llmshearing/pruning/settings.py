"""What a user sets about pruning, and what of it may change where a checkpoint goes on."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmshearing.arguments import number, whole
from llmshearing.errors import InputError, unknown_name
from llmshearing.pruning.lagrangian import COMPATIBILITIES
from llmshearing.pruning.selection import SELECTIONS
from llmshearing.pruning.target import check_target
from llmshearing.pruning.times import parse_time

log = logging.getLogger(__name__)

LR_SCHEDULES = ("constant", "follow")
_CHANGEABLE = ("lr", "lr_schedule", "betas", "warmup", "search", "seed")


@dataclass
class Settings:
    """The arguments of :class:`~llmshearing.TargetedPruning`, where they are documented.

    Raises:
        InputError: one is of another type, out of range, or contradicts another.
    """

    target: Mapping[str, int]
    lr: float
    lr_schedule: str
    betas: tuple[float, float]
    warmup: str | None
    selection: str
    search: str | None
    compat: str
    seed: int
    scores: str | None = None

    def __post_init__(self) -> None:
        self.target = check_target(self.target)
        for name, known in (("selection", SELECTIONS), ("compat", COMPATIBILITIES), ("lr_schedule", LR_SCHEDULES)):
            if getattr(self, name) not in known:
                raise unknown_name(name, getattr(self, name), known)
        if self.selection in ("random", "scores") and self.search is not None:
            raise InputError(f"search is {self.search!r}, but selection '{self.selection}' needs none. Leave it out.")
        if (self.selection == "scores") != (self.scores is not None):
            raise InputError(
                f"selection is '{self.selection}' and scores is {self.scores!r}. Give the file that "
                "`python -m llmshearing.score` wrote with selection 'scores', and with no other."
            )
        if self.selection != "learned" and self.warmup is not None:
            raise InputError(
                f"warmup is {self.warmup!r}, but masks are not learned by selection '{self.selection}'. Leave it out."
            )
        self.lr = number("lr", self.lr, "the masks' learning rate must be a number above 0", within=lambda x: x > 0)
        self.betas = self._betas()
        self.seed = whole("seed", self.seed, "the masks' seed must be a whole number, 0 or above", least=0)
        if self.search is None and self.selection == "importance":
            self.search = "8ba"
        if self.warmup is None and self.search is None and self.selection == "learned":
            self.warmup = "640ba"
        parse_time("warmup", self.warmup)
        if (search := parse_time("search", self.search)) is not None and not search.value:
            raise InputError(f"search is {self.search!r}; units need at least one batch to be chosen by.")

    def _betas(self) -> tuple[float, float]:
        if not isinstance(self.betas, (list, tuple)) or len(self.betas) != 2:
            raise InputError(f"betas is {self.betas!r}; give AdamW's two coefficients, such as [0.9, 0.95].")
        rule = "each of AdamW's coefficients is a number from 0 up to, but not, 1"
        for index, beta in enumerate(self.betas):
            number(f"betas[{index}]", beta, rule, within=lambda x: 0 <= x < 1)
        return float(self.betas[0]), float(self.betas[1])

    def __str__(self) -> str:
        """As arguments."""
        return ", ".join(f"{field.name}={getattr(self, field.name)!r}" for field in dataclasses.fields(self))

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`compare` needs, in plain types."""
        return {name: list(self.betas) if name == "betas" else getattr(self, name) for name in _CHANGEABLE}

    def compare(self, saved: Mapping[str, Any], *, decided: bool) -> None:
        """Say which settings differ from those of a checkpoint, from which this run goes on with its own.

        Args:
            saved: from :meth:`state_dict`.
            decided: whether the checkpoint's units were chosen for good.

        Raises:
            InputError: one that had its effect already.
        """
        own = self.state_dict()
        spent = {"search": decided, "seed": self.selection == "random"}
        for name in (name for name in own if saved[name] != own[name]):
            if spent.get(name):
                raise InputError(
                    f"{name} is {own[name]!r}, but the checkpoint's units are chosen already, with {saved[name]!r}. "
                    f"Set {name} to that, or start anew."
                )
            log.warning("%s was %r in the checkpoint; from here on it is %r.", name, saved[name], own[name])
