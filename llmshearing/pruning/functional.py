"""Pruning in any training loop, without Composer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from llmshearing.architecture.config import check_prunable
from llmshearing.architecture.shapes import ModelShape
from llmshearing.errors import InputError
from llmshearing.pruning.chooser import Chooser
from llmshearing.pruning.fold import Masks
from llmshearing.pruning.learned import LearnedMasks
from llmshearing.pruning.masked import MaskedModel
from llmshearing.pruning.ranks import average_gradients
from llmshearing.pruning.selection import ImportantUnits, RandomUnits, ScoredUnits
from llmshearing.pruning.target import UnitGroup, groups_to_prune

log = logging.getLogger(__name__)


class Pruning:
    """Masks on a model, and what chooses its units, from batch to batch.

    Args:
        model: the ``transformers`` causal LM that has the masks from now on.
        source: its shape.
        target: the shape that it will have.
        masks: how units are chosen.
        device: where masks live.
    """

    def __init__(
        self, model: nn.Module, source: ModelShape, target: ModelShape, masks: Chooser, device: torch.device
    ) -> None:
        self.source, self.target, self.masks = source, target, masks
        self.search_steps: int | None = None  # batches after which units are chosen; None: when training ends
        self.model = MaskedModel(model, source, masks.groups.values(), device)
        self._drawn: Masks | None = None
        if masks.chosen is not None:
            self.model.fix(masks.chosen)

    @property
    def searches(self) -> bool:
        """Whether units are still to be chosen, on weights that stand still."""
        return self.search_steps is not None and self.masks.chosen is None

    def draw(self, step: int) -> None:
        """Put the masks of a training batch on the model."""
        if self.masks.chosen is None:
            self._drawn = self.masks.draw(step)
            self.model.assign(self._drawn)

    def learn(self, step: int, *, lr_factor: float = 1.0, finished: bool = False) -> dict[str, Tensor | float]:
        """Learn from the backward passes since :meth:`draw`, and choose units if it is time to.

        All ranks call it together. The masks of evaluation are on the model afterwards.

        Args:
            step: index of the batch.
            lr_factor: multiplies the learning rate of masks.
            finished: whether this was the last batch.

        Returns:
            What to log.
        """
        values: dict[str, Tensor | float] = {}
        if self._drawn is not None:
            self.model.backward(self._drawn)
            average_gradients(self.masks.parameters)
            values = self.masks.learn(step, lr_factor=lr_factor)
            self._drawn = None
            if step + 1 == self.search_steps:
                self.masks.decide()
                log.info("The units are chosen; training goes on with %s.", self.target)
            self.show(finished=finished)
        return values | self.masks.statistics(step)

    def show(self, *, finished: bool = False) -> None:
        """Put the masks of evaluation on the model: of the size so far, or when ``finished`` of the target's."""
        if self.masks.chosen is not None:
            self.model.fix(self.masks.chosen)
        else:
            self.model.assign(self.evaluation_masks(finished=finished))

    def evaluation_masks(self, *, finished: bool) -> Masks:
        """What :meth:`show` puts on the model."""
        return self.masks.final() if finished and not self.searches else self.masks.expected()


def make_chooser(
    groups: list[UnitGroup],
    selection: str,
    *,
    lr: float,
    betas: tuple[float, float],
    compat: str,
    seed: int,
    scores: Mapping[str, Tensor] | None,
    device: torch.device,
) -> Chooser:
    """What chooses the units of ``groups``; arguments as for :class:`~llmshearing.TargetedPruning`."""
    if selection == "scores":
        assert scores is not None
        return ScoredUnits(groups, scores, device=device)
    if selection == "importance":
        return ImportantUnits(groups, device=device)
    if selection == "random":
        return RandomUnits(groups, seed=seed, device=device)
    return LearnedMasks(groups, lr=lr, betas=betas, warmup_steps=0, compat=compat, seed=seed, device=device)


def apply_targeted_pruning(
    model: nn.Module,
    target: Mapping[str, int],
    *,
    selection: str = "learned",
    lr: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.95),
    warmup_steps: int = 640,
    search_steps: int | None = None,
    compat: str = "paper",
    seed: int = 17,
    scores: Mapping[str, Tensor] | None = None,
    device: torch.device | None = None,
) -> Pruning:
    """Put masks on ``model``, in place, that a training loop of your own learns.

    Call :meth:`Pruning.draw` before a batch's forward and :meth:`Pruning.learn` after its backward passes, and in the
    end ``shear_state_dict(model.state_dict(), pruning.masks.final(), pruning.source, pruning.target)``. During a
    search no optimizer should step.

    Args:
        model: a ``transformers`` causal LM of a supported family.
        target: sizes by Hugging Face config name.
        selection: ``'learned'``, ``'importance'``, ``'scores'`` or ``'random'``.
        lr: learning rate of masks and multipliers.
        betas: their AdamW coefficients.
        warmup_steps: batches over which the constraint goes from the source to the target shape.
        search_steps: batches after which units are chosen; for importance, 8 if ``None``.
        compat: ``'paper'`` or ``'upstream'``.
        seed: of the masks' noise, and of the choice at random.
        scores: of the model's units by dimension, as in :class:`~llmshearing.pruning.scores.Scores`, where they choose.
        device: where masks live; the model's if ``None``.

    Raises:
        InputError: the model is of no supported family, or the target cannot be reached.
    """
    config = cast(Any, model).config
    source = ModelShape.from_hf_config(config)
    shape, groups = groups_to_prune(source, target, selection=selection)
    check_prunable(config.to_dict(), shape)
    place = device or next(model.parameters()).device
    if (selection == "scores") != (scores is not None):
        raise InputError(f"selection is '{selection}'; scores are given for 'scores', and for no other.")
    masks = make_chooser(groups, selection, lr=lr, betas=betas, compat=compat, seed=seed, scores=scores, device=place)
    masks.warmup_steps = warmup_steps
    pruning = Pruning(model, source, shape, masks, place)
    pruning.search_steps = 8 if search_steps is None and selection == "importance" else search_steps
    return pruning
