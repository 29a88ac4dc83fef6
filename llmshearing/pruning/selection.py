"""Ways to choose units other than learning their masks: by importance and at random."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from llmshearing.pruning.noise import generator
from llmshearing.pruning.target import UnitGroup

SELECTIONS = ("learned", "importance", "random")


class Importance:
    """How much the loss depends on every unit: the square of its gradient with respect to the unit's mask.

    The mask is one, so the gradient is what removing the unit would change, to first order (Michel et al., 2019, "Are
    Sixteen Heads Really Better than One?"; Molchanov et al., 2019). Summed over batches.

    Args:
        groups: what is pruned.
        device: where scores live.
    """

    def __init__(self, groups: Iterable[UnitGroup], *, device: torch.device) -> None:
        self.scores = {group.dimension: torch.zeros(group.shape, device=device) for group in groups}

    def draw(self) -> dict[str, Tensor]:
        """Masks of one, whose gradients :meth:`add` takes."""
        return {name: torch.ones_like(score, requires_grad=True) for name, score in self.scores.items()}

    @torch.no_grad()
    def add(self, gradients: Mapping[str, Tensor]) -> None:
        """Count one batch.

        Args:
            gradients: of the batch's mean loss with respect to the masks, by dimension.
        """
        for name, score in self.scores.items():
            score += gradients[name] ** 2

    def state_dict(self) -> dict[str, Tensor]:
        """The sums so far."""
        return {name: score.clone() for name, score in self.scores.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of :meth:`state_dict`."""
        for name, score in self.scores.items():
            score.copy_(state[name])


def random_scores(groups: Iterable[UnitGroup], seed: int) -> dict[str, Tensor]:
    """Scores that choose among the units of each group at random, the same on every rank."""
    noise = generator("units", seed)
    return {group.dimension: torch.rand(group.shape, generator=noise) for group in groups}
