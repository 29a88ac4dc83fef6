"""Ways to choose units other than learning their masks: by importance, by given scores, and at random."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from llmshearing.errors import InputError
from llmshearing.pruning.chooser import Chooser
from llmshearing.pruning.noise import generator
from llmshearing.pruning.target import UnitGroup

SELECTIONS = ("learned", "importance", "random", "scores")


class ImportantUnits(Chooser):
    """Units by how much the loss depends on each: the square of its gradient with respect to the unit's mask.

    The mask is one, so the gradient is what removing the unit would change, to first order (Michel et al., 2019, "Are
    Sixteen Heads Really Better than One?"; Molchanov et al., 2019). Summed over batches.
    """

    def __init__(self, groups: Iterable[UnitGroup], *, device: torch.device) -> None:
        super().__init__(groups, device=device)
        self._sums = {name: torch.zeros(group.shape, device=device) for name, group in self.groups.items()}
        self._masks: dict[str, Tensor] = {}

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """The masks of one themselves."""
        return self._masks

    def draw(self, step: int) -> dict[str, Tensor]:
        """Masks of one."""
        self._masks = {name: torch.ones_like(score, requires_grad=True) for name, score in self._sums.items()}
        return self._masks

    @torch.no_grad()
    def learn(self, step: int, *, lr_factor: float = 1.0) -> dict[str, Tensor | float]:
        """Count one batch, by the gradients of its mean loss."""
        for name, mask in self._masks.items():
            assert mask.grad is not None
            self._sums[name] += mask.grad**2
        self._masks = {}
        return {"importance": torch.stack([score.sum() for score in self._sums.values()]).sum()}

    def scores(self) -> Mapping[str, Tensor]:
        """The sums so far."""
        return self._sums

    def state_dict(self) -> dict[str, Any]:
        """The sums so far, and the choice."""
        return {**super().state_dict(), "scores": {name: score.clone() for name, score in self._sums.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        super().load_state_dict(state)
        for name, score in self._sums.items():
            score.copy_(state["scores"][name])


class _FixedUnits(Chooser):
    """Units by scores that are there from the beginning."""

    def __init__(self, groups: Iterable[UnitGroup], scores: Mapping[str, Tensor], *, device: torch.device) -> None:
        super().__init__(groups, device=device)
        self._scores = {name: scores[name].to(device) for name in self.groups}
        self.decide()

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """None."""
        return {}

    def draw(self, step: int) -> dict[str, Tensor]:
        """The choice."""
        return self.final()

    def learn(self, step: int, *, lr_factor: float = 1.0) -> dict[str, Tensor | float]:
        """Nothing."""
        return {}

    def scores(self) -> Mapping[str, Tensor]:
        """Those of the beginning."""
        return self._scores


class ScoredUnits(_FixedUnits):
    """Units by scores that are given, at once.

    Args:
        groups: what is pruned.
        scores: by dimension, of the groups' shapes; the best of each group stay.
        device: where masks live.

    Raises:
        InputError: a dimension has no scores, or of another shape.
    """

    def __init__(self, groups: Iterable[UnitGroup], scores: Mapping[str, Tensor], *, device: torch.device) -> None:
        groups = list(groups)
        for group in groups:
            found = tuple(scores[group.dimension].shape) if group.dimension in scores else "none"
            if found != group.shape:
                raise InputError(f"Scores of {group.dimension} must be of shape {group.shape}; there are {found}.")
        super().__init__(groups, scores, device=device)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`.

        Raises:
            InputError: the checkpoint's units were chosen by other scores.
        """
        chosen = self.final()
        super().load_state_dict(state)
        if not all(torch.equal(mask, chosen[name]) for name, mask in self.final().items()):
            raise InputError("The checkpoint's units were chosen by other scores. Give those, or start anew.")


class RandomUnits(_FixedUnits):
    """Units chosen at random at once, the same on every rank.

    Args:
        groups: what is pruned.
        seed: of the choice.
        device: where masks live.
    """

    def __init__(self, groups: Iterable[UnitGroup], *, seed: int, device: torch.device) -> None:
        groups, noise = list(groups), generator("units", seed)
        scores: dict[str, Tensor] = {group.dimension: torch.rand(group.shape, generator=noise) for group in groups}
        super().__init__(groups, scores, device=device)
