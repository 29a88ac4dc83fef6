"""Cut a model down to the units that its masks keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmshearing.errors import InputError
from llmshearing.pruning.fold import Masks, fold, rule_for, scale_vectors
from llmshearing.pruning.target import HEADS, HIDDEN, INTERMEDIATE, KV_HEADS, LAYERS, unit_groups
from llmshearing.shape import ModelShape


@dataclass(frozen=True)
class Placement:
    """What becomes of one tensor: its new name and shape, the rows and columns it keeps, and what scales them."""

    name: str
    shape: tuple[int, ...]
    rows: Tensor | None
    columns: Tensor | None
    scale_rows: Tensor | None
    scale_columns: Tensor | None

    def cut(self, tensor: Tensor) -> Tensor:
        """The kept part of ``tensor`` with the masks multiplied in, at float32 or wider, then in its own dtype."""
        for axis, index in enumerate((self.rows, self.columns)[: tensor.dim()]):
            if index is not None and len(index) < tensor.shape[axis]:
                tensor = tensor.index_select(axis, index)
        columns = self.scale_columns if tensor.dim() == 2 else None
        if self.scale_rows is None and columns is None:
            return tensor.contiguous()
        wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        return fold(wide, self.scale_rows, columns).to(tensor.dtype).contiguous()


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
        self._sizes = {
            "hidden": source.hidden_size,
            "intermediate": source.intermediate_size,
            "queries": source.num_attention_heads * source.head_dim,
            "keys": source.num_key_value_heads * source.head_dim,
        }
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
        found = rule_for(key, tied=self.source.tie_word_embeddings)
        if found is None:
            raise InputError(f"Tensor '{key}' is not part of a LLaMA-family model; shearing does not know what it is.")
        rule, layer = found
        if layer is not None and layer >= self.source.num_hidden_layers:
            raise InputError(f"Tensor '{key}' belongs to a layer beyond the {self.source.num_hidden_layers} expected.")
        for axis, units in enumerate((rule.rows, rule.columns)[: len(shape)]):
            if units is not None and shape[axis] != self._sizes[units]:
                raise InputError(
                    f"Tensor '{key}' has shape {tuple(shape)}, but axis {axis} should have {self._sizes[units]} "
                    "entries: the weights are not of the source shape."
                )
        name = key
        if layer is not None:
            if layer not in self.layers:
                return None
            name = key.replace(f"layers.{layer}.", f"layers.{self.layers.index(layer)}.", 1)
        rows, columns = self._indices(rule.rows, layer), self._indices(rule.columns, layer)
        return Placement(
            name=name,
            shape=tuple(
                size if index is None else len(index)
                for size, index in zip(shape, (rows, columns)[: len(shape)], strict=True)
            ),
            rows=rows,
            columns=columns,
            scale_rows=self._scale(rule.scale_rows, layer, rows),
            scale_columns=self._scale(rule.scale_columns, layer, columns),
        )

    def _indices(self, units: str | None, layer: int | None) -> Tensor | None:
        if units is None or units == "hidden":
            return None if units is None else torch.tensor(self.hidden)
        assert layer is not None
        kept = self.kept_in_layer(layer)
        if units == "intermediate":
            return torch.tensor(kept[INTERMEDIATE])
        heads = torch.tensor(kept[HEADS if units == "queries" else KV_HEADS])
        width = self.source.head_dim
        return (heads.unsqueeze(-1) * width + torch.arange(width)).flatten()

    def _scale(self, name: str | None, layer: int | None, index: Tensor | None) -> Tensor | None:
        """The kept entries of a scale vector; ``None`` where the tensor has none or its masks are absent."""
        scale = self._scales.get(name if name == "hidden" else f"{name}.{layer}") if name else None
        return scale if scale is None or index is None else scale[index]


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
