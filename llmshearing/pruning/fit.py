"""Fit the weights that stay to the activations of the source, layer by layer, before any training.

Kept weights were never told what is missing. Each linear map of the sheared model is fitted by ridge regression, in the
order of the model, on text: what reads the residual stream, to what the source's map gives there; what writes to it, to
what is still missing between the source's stream and the sheared one's, so that dropped layers and the errors of
earlier maps are made up for (as in reconstruction after pruning, Frantar and Alistarh, 2023, "SparseGPT", though in
closed form for whole matrices). Nothing is back-propagated: the cost is some forward passes over the text. Of either
model the layers that are at work need to be in memory, no others.

The ridge pulls towards the sheared weights. A weak one leaves large weights that cancel each other, whose error is
smaller and which do not train; so it is strong, some 7% of the mean square of the inputs, and stronger the fewer tokens
there are for each input. The output layer is fitted
where that lowers the loss on text that is held out, unless it is tied: what was tried for a shared matrix raised the
loss. In the end the scale of what reads the stream moves to its norms, so that the source's learning rate suits the
narrower model, see :mod:`.width`.

Letters: n tokens of all sequences, t tokens of a sequence, d hidden size, V vocabulary.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from llmshearing.architecture.layouts import LM_HEAD
from llmshearing.architecture.modules import Module
from llmshearing.errors import InputError
from llmshearing.pruning.fit_layer import KeptStream, LayerFit, Streams, stages
from llmshearing.pruning.gram import Gram
from llmshearing.pruning.layer_passes import (
    EMBEDDING,
    HEAD,
    NORM,
    Parts,
    advance,
    first_input,
    layer_name,
    layer_settings,
    resumed,
)
from llmshearing.pruning.shear import Shears
from llmshearing.pruning.width import hand_to_norms

log = logging.getLogger(__name__)

RIDGE = 0.07  # of the mean of the Gram matrix' diagonal; few tokens add to it, see gram.py
HEAD_RIDGE = 0.03  # a weaker one in the end, where no other map multiplies what is left


@dataclass
class HeldOut:
    """Sequences that tell what a fit is worth.

    Args:
        batches: token ids, (sequences, t) each.
        measure: gives the summed loss of a model on a batch in nats, and over how many tokens.

    Attributes:
        losses: in nats per token, of the ``source``, ``before`` the fit and ``after`` it; empty until it is through.
    """

    batches: Sequence[Tensor]
    measure: Callable[[Any, Tensor], tuple[float, int]]
    losses: dict[str, float] = field(default_factory=dict)


class Reconstruction:
    """Fits a sheared model to its source on the same text.

    Args:
        source: the model that was sheared.
        sheared: what came of it; where it is in memory, changed in place.
        shears: what was kept.
        ridge: share of the inputs' mean square that pulls towards the sheared weights.
    """

    def __init__(self, source: Parts, sheared: Parts, shears: Shears, *, ridge: float = RIDGE) -> None:
        self.source, self.sheared, self.shears, self.ridge = source, sheared, shears, ridge

    @torch.no_grad()
    def fit(self, batches: Sequence[Tensor], held_out: HeldOut | None = None) -> Iterator[tuple[str, Tensor]]:
        """Fit all maps in the order of the model, as the iteration goes on.

        Args:
            batches: token ids, each (sequences, t), all of one shape.
            held_out: what to compute losses on, in batches of the same shape.

        Yields:
            Every tensor of the sheared model by its Hugging Face name, of its parts' dtype, once it is fitted.

        Raises:
            InputError: too few tokens, batches of several shapes, or activations that are not finite.
        """
        others = [] if held_out is None else list(held_out.batches)
        self._check(batches, others)
        with self.source.held(EMBEDDING):
            stream = [first_input(self.source.model, ids) for ids in (*batches, *others)]
        with self.sheared.held(EMBEDDING) as embedding:
            own = [first_input(self.sheared.model, ids) for ids in (*batches, *others)]
            yield from _named(EMBEDDING, embedding)
        unfitted = own[len(batches) :]
        kept = self.shears.layers
        stream = self._pass(stream, range(kept[0]))
        for position, index in enumerate(kept):
            stop = kept[position + 1] if position + 1 < len(kept) else self.shears.source.num_hidden_layers
            settings = layer_settings(self.source.model, index, stream[0])
            after = self._pass(stream, range(index, stop))
            streams = [Streams(*batch) for batch in zip(stream, after, own, strict=True)][: len(batches)]
            name = layer_name(position)
            with self.source.held(layer_name(index)) as source, self.sheared.held(name) as sheared:
                unfitted = advance(sheared, unfitted, settings)
                layer = LayerFit(self.shears, index, source, sheared, settings)
                for stage in stages(self.shears.source.layer):
                    layer.fit(stage, streams, self.ridge)
                own = advance(sheared, own, settings)
                self._keep_steps(sheared, self.shears.source.layer)
                yield from _named(name, sheared)
            stream = after
            log.info("Fitted layer %d of %d, the source's %d.", position + 1, len(kept), index)
        yield from self._finish(stream, own, unfitted, held_out)

    def _check(self, batches: Sequence[Tensor], others: Sequence[Tensor]) -> None:
        if len({ids.shape for ids in (*batches, *others)}) != 1:
            raise InputError("A fit needs sequences of one length, in batches of one size.")
        tokens = sum(ids.numel() for ids in batches)
        least = max(self.shears.target.hidden_size, self.shears.target.intermediate_size)
        if tokens < least:
            raise InputError(
                f"A fit of {least} inputs needs as many tokens at least, not {tokens}. Give more sequences."
            )

    def _pass(self, stream: list[Tensor], layers: range) -> list[Tensor]:
        """The source's stream behind some of its layers."""
        for index in layers:
            settings = layer_settings(self.source.model, index, stream[0])
            with self.source.held(layer_name(index)) as layer:
                stream = advance(layer, stream, settings)
        return stream

    def _finish(
        self, stream: list[Tensor], own: list[Tensor], unfitted: list[Tensor], held_out: HeldOut | None
    ) -> Iterator[tuple[str, Tensor]]:
        """Fit what is behind the last layer, and compute losses."""
        number = len(unfitted)
        fitted_on = len(own) - number
        with _ends(self.source) as source, _ends(self.sheared) as sheared:
            if held_out is not None:
                held_out.losses["source"] = _loss(source, stream[fitted_on:], held_out)
                held_out.losses["before"] = _loss(sheared, unfitted, held_out)
            if not self.shears.source.tie_word_embeddings:
                self._fit_head(source, sheared, stream[:fitted_on], own, held_out)
            if held_out is not None:
                held_out.losses["after"] = _loss(sheared, own[fitted_on:], held_out)
            if not self.shears.source.tie_word_embeddings:
                self._keep_steps(sheared, [LM_HEAD])
            yield from _named(NORM, sheared.get_submodule(NORM))
            if not self.shears.source.tie_word_embeddings:
                yield from _named(HEAD, sheared.get_submodule(HEAD))

    def _keep_steps(self, sheared: nn.Module, modules: Sequence[Module]) -> None:
        """See :mod:`.width`."""
        source, target = self.shears.source, self.shears.target
        factor = source.hidden_size / target.hidden_size
        hand_to_norms(sheared, modules, factor, offset=float(source.family.norm.offset))

    def _fit_head(
        self, source: Any, sheared: Any, stream: list[Tensor], own: list[Tensor], held_out: HeldOut | None
    ) -> None:
        """The output layer, from what the sheared model's last norm gives to what the source's does there."""
        fitted_on = len(stream)
        unfitted = sheared.lm_head.weight.clone()
        without = math.inf if held_out is None else _loss(sheared, own[fitted_on:], held_out)
        gram = Gram()
        for theirs, mine in zip(stream, own[:fitted_on], strict=True):
            gram.add(sheared.model.norm(mine).flatten(0, -2), source.model.norm(theirs).flatten(0, -2))
        embedding = source.lm_head.weight.double()  # (V, d)
        hidden = KeptStream(self.shears, embedding.device).hidden
        start = torch.zeros(embedding.shape[1], len(hidden), dtype=torch.float64, device=embedding.device)
        start[hidden, torch.arange(len(hidden))] = 1.0
        sheared.lm_head.weight.copy_(embedding @ gram.solve(start, HEAD_RIDGE, "the output layer"))
        if held_out is not None and _loss(sheared, own[fitted_on:], held_out) > without:
            sheared.lm_head.weight.copy_(unfitted)


def _named(name: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((f"{name}.{key}", parameter.detach()) for key, parameter in module.named_parameters())


@contextmanager
def _ends(parts: Parts) -> Iterator[nn.Module]:
    """The model with what is in front of its layers and behind them."""
    with parts.held(EMBEDDING), parts.held(HEAD), parts.held(NORM):
        yield parts.model


def _loss(model: nn.Module, streams: Sequence[Tensor], held_out: HeldOut) -> float:
    """In nats per token, of the streams behind the last layer."""
    sums = []
    for stream, ids in zip(streams, held_out.batches, strict=True):
        with resumed(model, stream):
            sums.append(held_out.measure(model, ids))
    return sum(total for total, _ in sums) / sum(count for _, count in sums)
