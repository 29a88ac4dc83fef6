"""What masks become: vectors that scale the rows and columns of weights, in training and in shearing alike.

Masks are a mapping from a dimension's name to its z (shapes in :class:`~llmshearing.pruning.target.UnitGroup`); a
dimension that is not pruned is absent. Which vector scales what stands in :mod:`llmshearing.architecture.layouts`; in a
LLaMA it is::

    embedding output    * hidden                     o_proj     rows * residual, columns * heads
    every RMSNorm       * hidden                     down_proj  rows * residual, columns * intermediate

with ``residual = hidden * layer``. The residual stream is then exactly zero in every dropped dimension, so a masked
model computes what is left after the zero rows and columns are cut out, which is what shearing does.

Letters: L layers, d hidden size, H query heads, K key-value heads, I intermediate size.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from llmshearing.architecture.axes import HEADS, HIDDEN, INTERMEDIATE, KV_HEADS, LAYERS, Axis, Scale
from llmshearing.architecture.shapes import ModelShape

Masks = Mapping[str, Tensor]


def fold(weight: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """``weight`` (out, in) or (out,) with its rows and columns scaled; the result keeps the widest dtype."""
    if rows is not None:
        weight = weight * (rows.unsqueeze(-1) if weight.dim() == 2 else rows)
    if columns is not None:
        weight = weight * columns
    return weight


def vector_name(scale: Scale, layer: int | None) -> str:
    """The name of a scale vector among those of :func:`scale_vectors`."""
    return scale if scale == "hidden" else f"{scale}.{layer}"


def scale_vectors(masks: Masks, source: ModelShape) -> dict[str, Tensor]:
    """The vectors that masks become, differentiable in the masks.

    Returns:
        ``hidden`` (d,), and per layer i ``residual.i`` (d,), ``heads.i`` (H * head_dim,), ``intermediate.i`` (I,);
        only those that the masked dimensions touch.
    """
    vectors: dict[str, Tensor] = {}

    def add(scale: Scale, per_layer: Tensor) -> None:
        vectors.update((vector_name(scale, layer), vector) for layer, vector in enumerate(per_layer.unbind(0)))

    layers, hidden = masks.get(LAYERS), masks.get(HIDDEN)
    if hidden is not None:
        vectors["hidden"] = hidden
    if hidden is not None and layers is not None:
        add("residual", torch.outer(layers, hidden))
    elif hidden is not None:
        add("residual", hidden.expand(source.num_hidden_layers, -1))
    elif layers is not None:
        add("residual", layers.unsqueeze(-1).expand(-1, source.hidden_size))
    if INTERMEDIATE in masks:
        add("intermediate", masks[INTERMEDIATE])
    if (heads := query_head_masks(masks, source)) is not None:
        add("heads", heads.repeat_interleave(source.head_dim, dim=-1))
    return vectors


def query_head_masks(masks: Masks, source: ModelShape) -> Tensor | None:
    """The mask of every query head, (L, H): its own times that of its key-value head; ``None`` if neither is masked."""
    groups, queries = masks.get(KV_HEADS), masks.get(HEADS)
    if groups is None and queries is None:
        return None
    if groups is None:
        combined = queries
    elif queries is None:
        combined = groups.unsqueeze(-1).expand(-1, -1, source.queries_per_group)
    else:
        combined = groups.unsqueeze(-1) * queries
    assert combined is not None
    return combined.reshape(source.num_hidden_layers, source.num_attention_heads)


def kept_name(axis: Axis, layer: int | None) -> str:
    """The name of an axis among those of :func:`kept_masks`."""
    return axis if axis == HIDDEN else f"{axis}.{layer}"


def kept_masks(masks: Masks, source: ModelShape) -> dict[str, Tensor]:
    """Masks over the axes that norms take a mean of; what is zero does not count.

    Returns:
        ``hidden_size`` (d,); where queries and keys are normalised over all heads, per layer i
        ``num_attention_heads.i`` (H * head_dim,) and ``num_key_value_heads.i`` (K * head_dim,); only those masked.
    """
    kept = {HIDDEN: masks[HIDDEN]} if HIDDEN in masks else {}
    normed = {module.rows[0] for module in source.layer if module.is_norm}
    for axis, heads in ((HEADS, query_head_masks(masks, source)), (KV_HEADS, masks.get(KV_HEADS))):
        if axis in normed and heads is not None:
            entries = heads.repeat_interleave(source.head_dim, dim=-1)
            kept.update((kept_name(axis, layer), mask) for layer, mask in enumerate(entries.unbind(0)))
    return kept
