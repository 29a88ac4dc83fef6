"""Ways to choose units other than learning their masks, by importance and at random, and what any choice has to say."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from llmshearing.errors import InputError
from llmshearing.pruning.hard_concrete import ties
from llmshearing.pruning.noise import generator
from llmshearing.pruning.target import UnitGroup

log = logging.getLogger(__name__)

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
        self.scores: dict[str, Tensor] = {group.dimension: torch.zeros(group.shape, device=device) for group in groups}

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


def check_chosen(pruning: Mapping[str, Any], path: Any) -> None:
    """Check that the state of a :class:`~llmshearing.TargetedPruning` is not from before its units were chosen.

    Args:
        pruning: the state, as a checkpoint has it.
        path: of the checkpoint, for the message.

    Raises:
        InputError: it is from a search, or from gathering importance.
    """
    search = (pruning.get("settings") or {}).get("search")
    if search is None and pruning.get("selection", "learned") == "learned":
        return  # learned to the end, or, in a checkpoint without settings, it cannot be told
    if not all(bool(log_alpha.isinf().all()) for log_alpha in pruning["masks"]["log_alpha"].values()):
        raise InputError(
            f"'{path}' is from before its units were chosen{f' (search: {search})' if search else ''}. "
            "Go on training, and take a checkpoint of after that."
        )
