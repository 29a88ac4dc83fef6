"""What the maps of one layer are fitted on.

Letters: n tokens of all sequences, t tokens of a sequence, i inputs of a map, o outputs, d hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from llmshearing.architecture.axes import HIDDEN
from llmshearing.architecture.modules import Module
from llmshearing.pruning.gram import Gram
from llmshearing.pruning.layer_passes import layer_name, tap
from llmshearing.pruning.shear import Shears


@dataclass(frozen=True)
class Stage:
    """Maps of a layer that are fitted together, since they read the same.

    Args:
        modules: from the table.
        writes: whether they write to the residual stream.
    """

    modules: tuple[Module, ...]
    writes: bool

    @property
    def names(self) -> list[str]:
        """Of the modules."""
        return [module.name for module in self.modules]


def stages(layer: Sequence[Module]) -> list[Stage]:
    """What is fitted of a decoder layer, in the order of its forward pass."""
    found = []
    for block in ("self_attn.", "mlp."):
        inside = [module for module in layer if module.name.startswith(block) and not module.is_norm]
        found.append(Stage(tuple(module for module in inside if module.columns == HIDDEN), writes=False))
        found.append(Stage(tuple(module for module in inside if module.columns != HIDDEN), writes=True))
    return found


@dataclass(frozen=True)
class Streams:
    """A batch's residual streams: the source's in front of the layer, (sequences, t, d), and in front of the next that
    is kept; the sheared model's in front of the layer, (sequences, t, d')."""

    source: Tensor
    after: Tensor
    own: Tensor


class LayerFit:
    """Fits a layer of the sheared model in place.

    Args:
        shears: what was kept.
        index: of the layer in the source.
        source: the source's layer.
        sheared: what is left of it.
        settings: what both are called with besides the stream.
    """

    def __init__(
        self, shears: Shears, index: int, source: nn.Module, sheared: nn.Module, settings: dict[str, Any]
    ) -> None:
        self._shears, self._index, self._settings = shears, index, settings
        self._source, self._sheared = source, sheared
        self._kept = KeptStream(shears, next(sheared.parameters()).device)

    def fit(self, stage: Stage, streams: Sequence[Streams], ridge: float) -> None:
        """Fit the maps of one stage.

        Raises:
            InputError: activations that are not finite, or all zero.
        """
        gram = Gram()
        for batch in streams:
            gram.add(*(self._writing if stage.writes else self._reading)(stage, batch))
        maps = [cast(nn.Linear, self._sheared.get_submodule(name)) for name in stage.names]
        weight = torch.cat([_with_bias(linear) for linear in maps])
        fitted = gram.solve(weight, ridge, f"layer {self._index}'s {', '.join(stage.names)}")
        for linear, part in zip(maps, fitted.split([linear.out_features for linear in maps]), strict=True):
            linear.weight.copy_(part[:, : linear.in_features])
            if linear.bias is not None:
                linear.bias.copy_(part[:, -1])

    def _reading(self, stage: Stage, batch: Streams) -> tuple[Tensor, Tensor]:
        """For maps that read the stream: what they are given, (n, i), and what the source's give there, (n, o)."""
        x = self._tap(self._sheared, stage.names[:1], batch.own)[stage.names[0]][0]
        given = self._tap(self._source, stage.names, batch.source)
        parts = [given[name][1].index_select(-1, self._rows(name)) for name in stage.names]
        return self._with_ones(stage, x), torch.cat(parts, dim=-1).flatten(0, -2)

    def _writing(self, stage: Stage, batch: Streams) -> tuple[Tensor, Tensor, Tensor | None]:
        """For a map that writes to the stream: what it is given, and what is missing in the stream."""
        (module,) = stage.modules
        first = module.name.startswith("self_attn.")
        x = self._tap(self._sheared, stage.names, batch.own)[module.name][0]
        if module.scale_rows is None:  # a norm comes between
            y = self._kept.of(self._tap(self._source, stage.names, batch.source)[module.name][1])
            return self._with_ones(stage, x), y.flatten(0, -2), None
        feeding = next(m.reads for m in self._shears.source.layer if m.name.startswith("mlp.") and m.reads)
        wanted = self._tap(self._source, [feeding], batch.source)[feeding][0] if first else batch.after
        wanted = self._kept.of(wanted)
        there = batch.own if first else self._tap(self._sheared, [feeding], batch.own)[feeding][0]
        factor = getattr(self._sheared, "residual_multiplier", 1.0)
        y = ((wanted - there) / factor).flatten(0, -2)
        # The first token of a sequence is hundreds of times larger than the rest in a trained model, an attention sink.
        # So each token counts by its size, or by the sheared model's: where that makes a sink of another token, one
        # error would outweigh all else, and the neurons that make the sink would be fitted away.
        unfitted = there + factor * self._sheared.get_submodule(module.name)(x)
        size = (wanted.double().square() + unfitted.double().square()).mean(-1, keepdim=True).flatten(0, -2)
        return self._with_ones(stage, x), y, size.rsqrt()

    def _tap(self, layer: nn.Module, names: Sequence[str], x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        return tap(layer, names, x, self._settings)

    def _rows(self, name: str) -> Tensor:
        weight = cast(Tensor, self._source.get_submodule(name).weight)
        placement = self._shears.place(f"{layer_name(self._index)}.{name}.weight", weight.shape)
        assert placement is not None
        rows = torch.arange(weight.shape[0]) if placement.rows is None else placement.rows
        return rows.to(weight.device)

    def _with_ones(self, stage: Stage, x: Tensor) -> Tensor:
        x = x.flatten(0, -2)
        has_bias = self._sheared.get_submodule(stage.names[0]).bias is not None
        return torch.cat([x, torch.ones_like(x[:, :1])], dim=-1) if has_bias else x


class KeptStream:
    """The sheared model's part of the source's residual stream."""

    def __init__(self, shears: Shears, device: torch.device) -> None:
        self.hidden = torch.tensor(shears.hidden, device=device)
        scale = shears.masks.get(HIDDEN)
        self._scale = None if scale is None else scale[shears.hidden].to(device)

    def of(self, stream: Tensor) -> Tensor:
        """(..., d) to (..., d')."""
        part = stream.index_select(-1, self.hidden)
        return part if self._scale is None else part * self._scale.to(part.dtype)


def _with_bias(linear: nn.Linear) -> Tensor:
    """The weight, and the bias as the column of an input that is one."""
    return linear.weight if linear.bias is None else torch.cat([linear.weight, linear.bias.unsqueeze(-1)], dim=-1)
