"""Cut a model down to the units that its masks keep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmshearing.architecture.axes import HEADS, HIDDEN, INTERMEDIATE, KV_HEADS, LAYERS, Axis, Scale
from llmshearing.architecture.layouts import EMBEDDING, TIED_FINAL_NORM
from llmshearing.architecture.modules import Module
from llmshearing.architecture.shapes import ModelShape, find_module
from llmshearing.errors import InputError
from llmshearing.pruning.fold import Masks, fold, scale_vectors, vector_name
from llmshearing.pruning.target import unit_groups


@dataclass(frozen=True)
class Placement:
    """What becomes of one tensor: its new name and shape, the rows and columns it keeps, and what scales them.

    ``factor`` scales all of it; all scales act on ``offset`` plus the tensor, and the offset is taken off again.
    """

    name: str
    shape: tuple[int, ...]
    rows: Tensor | None = None
    columns: Tensor | None = None
    scale_rows: Tensor | None = None
    scale_columns: Tensor | None = None
    factor: float = 1.0
    offset: float = 0.0

    def cut(self, tensor: Tensor) -> Tensor:
        """The kept part of ``tensor`` with the masks multiplied in, at float32 or wider, then in its own dtype."""
        for axis, index in enumerate((self.rows, self.columns)[: tensor.dim()]):
            if index is not None and len(index) < tensor.shape[axis]:
                tensor = tensor.index_select(axis, index)
        columns = self.scale_columns if tensor.dim() == 2 else None
        if self.scale_rows is None and columns is None and self.factor == 1:
            return tensor.contiguous()
        wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        if self.offset:
            wide = wide + self.offset
        wide = fold(wide, self.scale_rows, columns)
        if self.factor != 1:
            wide = wide * self.factor
        if self.offset:
            wide = wide - self.offset
        return wide.to(tensor.dtype).contiguous()


class Shears:
    """What deterministic masks keep of a model, and where each of its tensors goes.

    Args:
        masks: z by dimension with exactly the target's number of non-zero entries per group, as
            :func:`~llmshearing.pruning.hard_concrete.deterministic` gives them. Shapes as in
            :class:`~llmshearing.pruning.target.UnitGroup`.
        source: the shape that the tensors have.
        target: the shape that they get.

    Raises:
        InputError: masks that are missing, not finite, or of the wrong shape or number of kept units.
    """

    def __init__(self, masks: Masks, source: ModelShape, target: ModelShape) -> None:
        self.source, self.target = source, target
        self.masks = {name: mask.detach().cpu() for name, mask in masks.items()}
        self._check()
        self._scales = scale_vectors(self.masks, source)
        self.layers = self._kept(LAYERS, source.num_hidden_layers)
        self.hidden = self._kept(HIDDEN, source.hidden_size)

    def _check(self) -> None:
        for group in unit_groups(self.source, self.target):
            mask = self.masks.get(group.dimension)
            if mask is None:
                raise InputError(
                    f"There are no masks for {group.dimension}, which goes from {group.num_units} to {group.num_kept}."
                )
            if tuple(mask.shape) != group.shape:
                raise InputError(f"The masks of {group.dimension} have shape {tuple(mask.shape)}, not {group.shape}.")
            if not torch.isfinite(mask).all():
                raise InputError(f"The masks of {group.dimension} hold values that are not finite.")
            counts = (mask != 0).sum(-1)
            if (counts != group.num_kept).any():
                raise InputError(
                    f"The masks of {group.dimension} keep {sorted(set(counts.flatten().tolist()))} units per group; "
                    f"the target is {group.num_kept}. Pass deterministic masks of the target shape."
                )

    def _kept(self, dimension: str, size: int, *index: int) -> list[int]:
        """Indices of the kept units of one group; all of them where the dimension is not masked."""
        mask = self.masks.get(dimension)
        return list(range(size)) if mask is None else mask[index].nonzero().flatten().tolist()

    def kept_in_layer(self, layer: int) -> dict[str, list[int]]:
        """Kept units of one source layer by config name; query heads are numbered over the whole layer."""
        source = self.source
        groups = self._kept(KV_HEADS, source.num_key_value_heads, layer)
        queries = source.queries_per_group
        return {
            INTERMEDIATE: self._kept(INTERMEDIATE, source.intermediate_size, layer),
            KV_HEADS: groups,
            HEADS: [group * queries + head for group in groups for head in self._kept(HEADS, queries, layer, group)],
        }

    def describe(self) -> dict[str, Any]:
        """What is kept, as plain lists: the ``kept`` entry of ``shearing.json``."""
        per_layer = [{"layer": layer, **self.kept_in_layer(layer)} for layer in self.layers]
        return {"layers": self.layers, "hidden_size": self.hidden, "per_layer": per_layer}

    def place(self, key: str, shape: Sequence[int]) -> Placement | None:
        """Where one tensor goes, or ``None`` where its whole layer goes away.

        Raises:
            InputError: a name or size that a model of the source shape does not have.
        """
        found = find_module(key, self.source)
        if found is None:
            raise InputError(f"Tensor '{key}' is not part of a '{self.source.model_type}'; what it is, is not known.")
        module, layer = found
        if layer is not None and layer >= self.source.num_hidden_layers:
            raise InputError(f"Tensor '{key}' belongs to a layer beyond the {self.source.num_hidden_layers} expected.")
        axes = (module.rows, () if module.columns is None else (module.columns,))[: len(shape)]
        for number, axis in enumerate(axes):
            if shape[number] != (size := sum(map(self.source.length, axis))):
                raise InputError(
                    f"Tensor '{key}' has shape {tuple(shape)}, but axis {number} should have {size} entries: the "
                    "weights are not of the source shape."
                )
        name = key
        if layer is not None:
            if layer not in self.layers:
                return None
            name = key.replace(f"layers.{layer}.", f"layers.{self.layers.index(layer)}.", 1)
        rows, columns = (self._indices(axis, layer) for axis in (*axes, ())[:2])
        return Placement(
            name=name,
            shape=tuple(
                size if index is None else len(index)
                for size, index in zip(shape, (rows, columns)[: len(shape)], strict=True)
            ),
            rows=rows,
            columns=columns,
            scale_rows=self._scale(module.scale_rows, layer, rows),
            scale_columns=self._scale(module.scale_columns, layer, columns),
            factor=self._factor(module),
            offset=float(module.is_norm and self.source.family.norm.offset),
        )

    def _factor(self, module: Module) -> float:
        """What makes up for an embedding scaled by the root of hidden_size, which is smaller now: a factor for the
        matrix, and where that is the head as well, its inverse for the final norm."""
        if not self.source.family.scaled_embedding:
            return 1.0
        ratio = math.sqrt(self.source.hidden_size / self.target.hidden_size)
        if module is EMBEDDING:
            return ratio
        return 1 / ratio if module is TIED_FINAL_NORM else 1.0

    def _indices(self, axes: Sequence[Axis], layer: int | None) -> Tensor | None:
        """Kept entries of a tensor's axis, fused from ``axes``; ``None`` where nothing of it is ever dropped."""
        if not any(axis in (HIDDEN, INTERMEDIATE, HEADS, KV_HEADS) for axis in axes):
            return None
        kept, start = [], 0
        for axis in axes:
            kept.append(start + self._kept_entries(axis, layer))
            start += self.source.length(axis)
        return torch.cat(kept)

    def _kept_entries(self, axis: Axis, layer: int | None) -> Tensor:
        if axis == HIDDEN:
            return torch.tensor(self.hidden)
        assert layer is not None
        kept = torch.tensor(self.kept_in_layer(layer)[axis])
        if axis == INTERMEDIATE:
            return kept
        width = self.source.head_dim
        return (kept.unsqueeze(-1) * width + torch.arange(width)).flatten()

    def _scale(self, scale: Scale | None, layer: int | None, index: Tensor | None) -> Tensor | None:
        """The kept entries of a scale vector; ``None`` where the tensor has none or its masks are absent."""
        vector = self._scales.get(vector_name(scale, layer)) if scale else None
        return vector if vector is None or index is None else vector[index]


def shear_state_dict(
    state_dict: Mapping[str, Tensor], masks: Masks, source: ModelShape, target: ModelShape
) -> dict[str, Tensor]:
    """Shear all tensors of a model.

    Args:
        state_dict: tensors by Hugging Face name, of the shape ``source``.
        masks: see :class:`Shears`.
        source: shape of the tensors given.
        target: shape of the tensors returned.

    Returns:
        Tensors by Hugging Face name, of the shape ``target``, with the masks multiplied in.

    Raises:
        InputError: masks or tensors that do not fit the shapes.
    """
    shears = Shears(masks, source, target)
    placed = ((shears.place(key, tensor.shape), tensor) for key, tensor in state_dict.items())
    return {placement.name: placement.cut(tensor) for placement, tensor in placed if placement is not None}
