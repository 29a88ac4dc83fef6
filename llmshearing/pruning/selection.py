"""Ways to choose units other than learning their masks: by importance and at random."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from llmshearing.pruning.chooser import Chooser
from llmshearing.pruning.noise import generator
from llmshearing.pruning.target import UnitGroup

SELECTIONS = ("learned", "importance", "random")


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


class RandomUnits(Chooser):
    """Units chosen at random at once, the same on every rank.

    Args:
        groups: what is pruned.
        seed: of the choice.
        device: where masks live.
    """

    def __init__(self, groups: Iterable[UnitGroup], *, seed: int, device: torch.device) -> None:
        super().__init__(groups, device=device)
        noise = generator("units", seed)
        self._scores = {
            name: torch.rand(group.shape, generator=noise).to(device) for name, group in self.groups.items()
        }
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
        """The seed's random numbers."""
        return self._scores
