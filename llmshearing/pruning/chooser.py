"""What every way to choose units has in common: masks for a batch, something to learn from it, a choice in the end."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from llmshearing.pruning.hard_concrete import deterministic, ties
from llmshearing.pruning.target import UnitGroup

log = logging.getLogger(__name__)


class Chooser(ABC):
    """Masks of all unit groups until units are chosen, and the choice.

    A batch is :meth:`draw`, a backward pass into what the masks were computed from, :attr:`parameters`, and
    :meth:`learn`. Everything is replicated on every rank and depends only on (seed, step) and gradients, so ranks that
    see the same averaged gradients stay identical to the bit.

    Args:
        groups: what is pruned.
        device: where masks live.
    """

    def __init__(self, groups: Iterable[UnitGroup], *, device: torch.device) -> None:
        self.groups: Final[dict[str, UnitGroup]] = {group.dimension: group for group in groups}
        self.chosen: dict[str, Tensor] | None = None  # masks of one and zero, once units are chosen for good
        self.device = device
        self.warmup_steps = 0  # over which sizes go to the target, where masks are learned

    @property
    @abstractmethod
    def parameters(self) -> Mapping[str, Tensor]:
        """The leaves that drawn masks are computed from, by dimension; gradients of a batch gather in them."""

    @abstractmethod
    def draw(self, step: int) -> dict[str, Tensor]:
        """Masks of one training batch, differentiable in :attr:`parameters`."""

    @abstractmethod
    def learn(self, step: int, *, lr_factor: float = 1.0) -> dict[str, Tensor | float]:
        """Take up the gradients in :attr:`parameters`; returns what to log of it.

        Args:
            step: index of the batch that gave them.
            lr_factor: multiplies learning rates.
        """

    @abstractmethod
    def scores(self) -> Mapping[str, Tensor]:
        """What units are chosen by: the best of each group stay."""

    def expected(self) -> dict[str, Tensor]:
        """Masks of what the model is on the way to its target, for evaluation: of one until units are chosen."""
        return self.chosen or {name: torch.ones(group.shape, device=self.device) for name, group in self.groups.items()}

    @torch.no_grad()
    def final(self) -> dict[str, Tensor]:
        """Masks of exactly the target size: what shearing keeps."""
        if self.chosen is not None:
            return self.chosen
        return {name: deterministic(score, self.groups[name].num_kept) for name, score in self.scores().items()}

    @torch.no_grad()
    def decide(self) -> None:
        """End the choice: the best units get masks of one for good, the others zero."""
        self.log_ties()
        self.chosen = {name: (mask > 0).to(torch.float32) for name, mask in self.final().items()}

    def log_ties(self) -> None:
        """Warn of units between which nothing but their index decides."""
        if self.chosen is None:
            for name, score in self.scores().items():
                log_ties(self.groups[name], score)

    def settled(self, step: int) -> bool:
        """Whether sizes should long be near the target."""
        return self.chosen is not None

    @torch.no_grad()
    def statistics(self, step: int) -> dict[str, Tensor | float]:
        """What to log after ``step``: sizes in config units, undecided units, and the distance from the target."""
        values: dict[str, Tensor | float] = {}
        for name, group in self.groups.items():
            size = group.num_units if self.chosen is None else group.num_kept
            values[f"{name}/expected"] = float(size * group.multiple)
            values[f"{name}/target"] = float(group.num_kept * group.multiple)
            values[f"{name}/undecided"] = float(group.num_units * group.num_groups if self.chosen is None else 0)
        away = [1 - group.num_kept / group.num_units for group in self.groups.values()]
        values["distance"] = 0.0 if self.chosen is not None else max(away)
        return values

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only, of the same layout at every step."""
        chosen = {
            name: torch.zeros(group.shape, dtype=torch.bool, device=self.device)
            if self.chosen is None
            else self.chosen[name].bool()
            for name, group in self.groups.items()
        }
        return {"decided": self.chosen is not None, "chosen": chosen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`; tensors are copied to where the masks live."""
        self.chosen = None
        if state["decided"]:
            self.chosen = {name: state["chosen"][name].to(self.device, torch.float32) for name in self.groups}


def log_ties(group: UnitGroup, scores: Tensor) -> None:
    """Warn where units are chosen by nothing but their index, since the cut goes through units of equal score.

    Args:
        group: what is chosen among.
        scores: of the group's shape.
    """
    tied = ties(scores.detach(), group.num_kept)
    if not tied.any():
        return
    where = ""
    if tied.dim():  # the first axis is the layer
        where = f" (layers {', '.join(map(str, tied.nonzero()[:, 0].unique().tolist()))})"
    log.warning(
        "%s: in %d of %d groups%s the last unit kept is no better than the first one dropped. %d units share their "
        "score there; of these, those of lower index stay.",
        group.dimension,
        int((tied > 0).sum()),
        group.num_groups,
        where,
        int(tied.sum()),
    )
