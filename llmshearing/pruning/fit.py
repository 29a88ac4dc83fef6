"""Fit the weights that stay to the activations of the source, layer by layer, before any training.

Kept weights were never told what is missing. Each linear map of the sheared model is fitted by ridge regression, in the
order of the model, on text: what reads the residual stream, to what the source's map gives there; what writes to it, to
what is still missing between the source's stream and the sheared one's, so that dropped layers and the errors of
earlier maps are made up for (as in reconstruction after pruning, Frantar and Alistarh, 2023, "SparseGPT", though in
closed form for whole matrices). Nothing is back-propagated: the cost is some forward passes over the text.

The ridge pulls towards the sheared weights. A weak one leaves large weights that cancel each other, whose error is
smaller and which do not train; so it is strong, a tenth of the mean square of the inputs.

Letters: n tokens of all sequences, t tokens of a sequence, i inputs of a map, o outputs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from llmshearing.architecture.axes import HIDDEN
from llmshearing.architecture.modules import Module
from llmshearing.errors import InputError
from llmshearing.pruning.layer_passes import advance, first_input, layer_settings, layers, tap
from llmshearing.pruning.shear import Shears

log = logging.getLogger(__name__)

RIDGE = 0.1  # of the mean of the Gram matrix' diagonal


@dataclass(frozen=True)
class Stage:
    """Maps of a layer that are fitted together, since they read the same.

    Args:
        modules: from the table.
        writes: whether they write to the residual stream.
    """

    modules: tuple[Module, ...]
    writes: bool


def stages(layer: Sequence[Module]) -> list[Stage]:
    """What is fitted of a decoder layer, in the order of its forward pass."""
    found = []
    for block in ("self_attn.", "mlp."):
        inside = [module for module in layer if module.name.startswith(block) and not module.is_norm]
        found.append(Stage(tuple(module for module in inside if module.columns == HIDDEN), writes=False))
        found.append(Stage(tuple(module for module in inside if module.columns != HIDDEN), writes=True))
    return found


class Gram:
    """Sums over tokens for a ridge regression of outputs (n, o) on inputs (n, i), in float64."""

    def __init__(self) -> None:
        self.inputs: Tensor | None = None  # (i, i)
        self.products: Tensor | None = None  # (i, o)
        self.count = 0

    def add(self, x: Tensor, y: Tensor, weights: Tensor | None = None) -> None:
        """Count a batch: ``x`` (n, i), ``y`` (n, o), ``weights`` (n, 1) of the squared errors' roots."""
        x, y = x.double(), y.double()
        if weights is not None:
            x, y = x * weights, y * weights
        inputs, products = x.T @ x, x.T @ y
        self.inputs = inputs if self.inputs is None else self.inputs.add_(inputs)
        self.products = products if self.products is None else self.products.add_(products)
        self.count += len(x)

    def solve(self, weight: Tensor, ridge: float, name: str) -> Tensor:
        """The map (o, i) of least squared error with ``ridge`` towards ``weight`` (o, i), in its dtype.

        Raises:
            InputError: what was counted is not finite, or zero; ``name`` says of what.
        """
        assert self.inputs is not None
        assert self.products is not None
        if not (torch.isfinite(self.inputs).all() and torch.isfinite(self.products).all()):
            raise InputError(f"Activations at {name} are not finite. Take other text or another model, or float32.")
        pull = ridge * self.inputs.diagonal().mean()
        if not pull:
            raise InputError(f"Activations at {name} are all zero. Take other text.")
        eye = torch.eye(len(self.inputs), dtype=self.inputs.dtype, device=self.inputs.device)
        # The change of the weight rather than the weight: exact where there is nothing to change.
        missing = self.products - self.inputs @ weight.double().T
        return weight + torch.linalg.solve(self.inputs + pull * eye, missing).T.to(weight.dtype)


def maps_of(stage: Stage) -> str:
    """The names of a stage's maps."""
    return ", ".join(module.name for module in stage.modules)


def _with_bias(linear: nn.Linear) -> Tensor:
    """The weight, and the bias as the column of an input that is one."""
    return linear.weight if linear.bias is None else torch.cat([linear.weight, linear.bias.unsqueeze(-1)], dim=-1)


class Reconstruction:
    """Fits a sheared model to its source on the same text.

    Args:
        source: the model that was sheared, as ``transformers`` has it, in eval mode.
        sheared: what came of it, in eval mode; changed in place.
        shears: what was kept.
        ridge: share of the inputs' mean square that pulls towards the sheared weights.
    """

    def __init__(self, source: nn.Module, sheared: nn.Module, shears: Shears, *, ridge: float = RIDGE) -> None:
        self.source, self.sheared, self.shears, self.ridge = source, sheared, shears, ridge
        device = next(sheared.parameters()).device
        self._hidden = torch.tensor(shears.hidden, device=device)
        scale = shears.masks.get(HIDDEN)
        self._scale = None if scale is None else scale[shears.hidden].to(device)

    @torch.no_grad()
    def fit(self, batches: Sequence[Tensor]) -> None:
        """Fit all maps in the order of the model.

        Args:
            batches: token ids, each (sequences, t), all of one shape.

        Raises:
            InputError: too few tokens, batches of several shapes, or activations that are not finite.
        """
        self._check(batches)
        settings = layer_settings(self.source, batches[0])
        stream = [first_input(self.source, ids) for ids in batches]  # the source's, (sequences, t, d) each
        own = [first_input(self.sheared, ids) for ids in batches]  # (sequences, t, d') each
        source, kept = layers(self.source), self.shears.layers
        stream = advance(stream, source[: kept[0]], settings[: kept[0]])
        for position, index in enumerate(kept):
            stop = kept[position + 1] if position + 1 < len(kept) else len(source)
            after = advance(stream, source[index:stop], settings[index:stop])
            pair = _Pair(self, index, source[index], layers(self.sheared)[position], settings[index])
            for stage in stages(self.shears.source.layer):
                self._fit_stage(pair, stage, list(zip(stream, after, own, strict=True)))
            own = advance(own, [pair.sheared], [settings[index]])
            stream = after
            log.info("Fitted layer %d of %d, the source's %d.", position + 1, len(kept), index)
        self._fit_head(stream, own)

    def _check(self, batches: Sequence[Tensor]) -> None:
        if len({ids.shape for ids in batches}) != 1:
            raise InputError("A fit needs sequences of one length, in batches of one size.")
        tokens = sum(ids.numel() for ids in batches)
        least = max(self.shears.target.hidden_size, self.shears.target.intermediate_size)
        if tokens < least:
            raise InputError(
                f"A fit of {least} inputs needs as many tokens at least, not {tokens}. Give more sequences."
            )

    def cut(self, stream: Tensor) -> Tensor:
        """The sheared model's part of the source's residual stream, (..., d) to (..., d')."""
        part = stream.index_select(-1, self._hidden)
        return part if self._scale is None else part * self._scale.to(part.dtype)

    def _fit_stage(self, pair: _Pair, stage: Stage, streams: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        gram = Gram()
        for source, after, own in streams:
            x, y, weights = (pair.writing if stage.writes else pair.reading)(stage, source, after, own)
            gram.add(x, y, weights)
        maps = [cast(nn.Linear, pair.sheared.get_submodule(module.name)) for module in stage.modules]
        weight = torch.cat([_with_bias(linear) for linear in maps])
        fitted = gram.solve(weight, self.ridge, f"layer {pair.index}'s {maps_of(stage)}")
        for linear, part in zip(maps, fitted.split([linear.out_features for linear in maps]), strict=True):
            linear.weight.copy_(part[:, : linear.in_features])
            if linear.bias is not None:
                linear.bias.copy_(part[:, -1])

    def _fit_head(self, streams: list[Tensor], own: list[Tensor]) -> None:
        """The output layer: from the sheared model's last norm to what the source's had there."""
        source, sheared = cast(Any, self.source), cast(Any, self.sheared)
        tied, offset = self.shears.source.tie_word_embeddings, float(self.shears.source.family.norm.offset)
        norm = sheared.model.norm
        gram = Gram()
        for stream, mine in zip(streams, own, strict=True):
            inputs = norm(mine)
            if tied:  # whose weight is what is fitted
                inputs = inputs / (norm.weight + offset)
            gram.add(inputs.flatten(0, -2), source.model.norm(stream).flatten(0, -2))
        embedding = source.lm_head.weight.double()  # (V, d)
        start = torch.zeros(embedding.shape[1], len(self._hidden), dtype=torch.float64, device=embedding.device)
        start[self._hidden, torch.arange(len(self._hidden))] = 1.0
        if tied:
            source_norm = source.model.norm.weight.double() + offset
            start = start * source_norm.unsqueeze(-1)
        mapped = embedding @ gram.solve(start, self.ridge, "the output layer")  # (V, d')
        if not tied:
            sheared.lm_head.weight.copy_(mapped)
            return
        # The weight w of the norm for which E' diag(w) x comes nearest to E B x.
        assert gram.inputs is not None
        matrix = sheared.lm_head.weight.double()
        system = (matrix.T @ matrix) * gram.inputs
        wanted = ((matrix.T @ mapped) * gram.inputs).sum(-1)
        weight = norm.weight.double() + offset
        pull = self.ridge * system.diagonal().mean() * torch.eye(len(system), dtype=system.dtype, device=system.device)
        norm.weight.copy_(weight + torch.linalg.solve(system + pull, wanted - system @ weight) - offset)


@dataclass(frozen=True)
class _Pair:
    """A layer of the source and what is left of it."""

    fit: Reconstruction
    index: int
    source: nn.Module
    sheared: nn.Module
    settings: dict[str, Any]

    def reading(self, stage: Stage, source: Tensor, after: Tensor, own: Tensor) -> tuple[Tensor, Tensor, None]:
        """For maps that read the stream: what they are given, (n, i), and what the source's give there, (n, o)."""
        names = [module.name for module in stage.modules]
        x = tap(self.sheared, names[:1], own, self.settings)[names[0]][0]
        given = tap(self.source, names, source, self.settings)
        parts = [given[name][1].index_select(-1, self._rows(name)) for name in names]
        return self._with_ones(stage, x), torch.cat(parts, dim=-1).flatten(0, -2), None

    def writing(self, stage: Stage, source: Tensor, after: Tensor, own: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """For a map that writes to the stream: what it is given, and what is missing in the stream."""
        (module,) = stage.modules
        first = module.name.startswith("self_attn.")
        x = tap(self.sheared, [module.name], own, self.settings)[module.name][0]
        if module.scale_rows is None:  # a norm comes between
            y = self.fit.cut(tap(self.source, [module.name], source, self.settings)[module.name][1])
            return self._with_ones(stage, x), y.flatten(0, -2), None
        feeding = next(m.reads for m in self.fit.shears.source.layer if m.name.startswith("mlp.") and m.reads)
        wanted = self.fit.cut(tap(self.source, [feeding], source, self.settings)[feeding][0] if first else after)
        there = own if first else tap(self.sheared, [feeding], own, self.settings)[feeding][0]
        factor = getattr(self.sheared, "residual_multiplier", 1.0)
        y = ((wanted - there) / factor).flatten(0, -2)
        # A few tokens of a trained model are hundreds of times larger than the rest: each counts by its own size.
        return self._with_ones(stage, x), y, wanted.flatten(0, -2).double().pow(2).mean(-1, keepdim=True).rsqrt()

    def _rows(self, name: str) -> Tensor:
        key = f"model.layers.{self.index}.{name}.weight"
        weight = cast(Tensor, self.source.get_submodule(name).weight)
        placement = self.fit.shears.place(key, weight.shape)
        assert placement is not None
        rows = torch.arange(weight.shape[0]) if placement.rows is None else placement.rows
        return rows.to(weight.device)

    def _with_ones(self, stage: Stage, x: Tensor) -> Tensor:
        x = x.flatten(0, -2)
        has_bias = self.sheared.get_submodule(stage.modules[0].name).bias is not None
        return torch.cat([x, torch.ones_like(x[:, :1])], dim=-1) if has_bias else x
