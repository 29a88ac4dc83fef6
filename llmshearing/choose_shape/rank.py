"""What a cut to a shape costs: a first guess from scores, and the loss of what is cut and fitted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmshearing.architecture.axes import DIMENSIONS, HEADS, HIDDEN, INTERMEDIATE, KV_HEADS, LAYERS
from llmshearing.architecture.shapes import ModelShape
from llmshearing.convert.fit import fit_state_dict
from llmshearing.pruning.scores import Scores, all_groups
from llmshearing.pruning.shear import Shears


class Guess:
    """The nats that a cut costs before anything makes up for it, to first order, by what its units carry.

    A layer that goes costs by how much its absence raises the loss; the neurons and heads that go from a layer, the
    same share of that as they have of what the layer writes; hidden dimensions, the share of all that the model knows
    (its loss against a uniform guess) that they have of the residual stream's energy. The loss of the whole model is
    taken to be that without the layer that matters least.

    Args:
        scores: of the source.
    """

    def __init__(self, scores: Scores) -> None:
        source = scores.source
        units = {
            group.dimension: scores.units.get(group.dimension, torch.ones(group.shape)) for group in all_groups(source)
        }
        losses = units.get(LAYERS, torch.zeros(source.num_hidden_layers)).double()
        self._layers = (losses - losses.min()).sort(descending=True)
        self._knows = max(0.0, math.log(source.vocab_size) - losses.min().item())
        self._hidden = _running(units.get(HIDDEN, torch.ones(1)))
        neurons = _running(units.get(INTERMEDIATE, torch.ones(source.num_hidden_layers, 1)))
        groups = _running(units.get(KV_HEADS, torch.ones(source.num_hidden_layers, 1)))
        self._neurons, self._groups = neurons, groups
        self._written = neurons[:, -1] + groups[:, -1]

    def __call__(self, shape: ModelShape) -> float:
        """For one shape, whose query heads go with their key-value heads."""
        order, kept = self._layers.indices, shape.num_hidden_layers
        stay = (self._neurons[:, shape.intermediate_size - 1] + self._groups[:, shape.num_key_value_heads - 1]).div(
            self._written
        )
        matter = self._layers.values
        width = (matter[:kept] * (1 - stay[order[:kept]])).sum() + matter[kept:].sum()
        return (width + self._knows * (1 - self._hidden[shape.hidden_size - 1] / self._hidden[-1])).item()


def _running(scores: Tensor) -> Tensor:
    """Sums of the best units' scores, by how many there are."""
    return scores.double().clamp(min=0).sort(dim=-1, descending=True).values.cumsum(-1)


def unevenness(source: ModelShape, shape: ModelShape) -> float:
    """How far a cut is from taking the same share of depth, width and neurons, where nothing is known of units."""
    shares = [math.log(getattr(shape, name) / getattr(source, name)) for name in (LAYERS, HIDDEN, INTERMEDIATE)]
    return max(shares) - min(shares)


def fitted_loss(
    state_dict: Mapping[str, Tensor],
    config: Mapping[str, Any],
    scores: Scores,
    shape: ModelShape,
    *,
    data: str | Path,
    num_sequences: int,
) -> float:
    """In nats per token right after a cut by scores and a fit, on sequences that it was not fitted on.

    Args:
        state_dict: of the source, by Hugging Face name.
        config: its Hugging Face config.
        scores: of its units.
        shape: to cut to.
        data: what ``data_prep/prepare.py`` wrote.
        num_sequences: to fit on.
    """
    full, masks = scores.masks(target_of(scores.source, shape))
    _, record = fit_state_dict(
        state_dict, config, Shears(masks, scores.source, full), data=data, num_sequences=num_sequences
    )
    losses = record["losses"]
    return min(losses["before"], losses["after"])


def target_of(source: ModelShape, shape: ModelShape) -> dict[str, int]:
    """The sizes in which a shape differs from the source, as ``TargetedPruning`` takes them."""
    target: dict[str, int] = {
        name: getattr(shape, name) for name in DIMENSIONS if getattr(shape, name) != getattr(source, name)
    }
    if KV_HEADS in target and HEADS in target and source.queries_per_group == 1:
        del target[KV_HEADS]  # which are the same heads
    return target


def best_first(shapes: Sequence[ModelShape], costs: Mapping[ModelShape, float]) -> list[ModelShape]:
    """In order of their costs; the deeper one first where they are equal."""
    return sorted(shapes, key=lambda shape: (costs[shape], -shape.num_hidden_layers, -shape.hidden_size))
