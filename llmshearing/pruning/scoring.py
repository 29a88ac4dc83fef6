"""Score the units of a model by what they carry on some text: forward passes only.

==================  ================================================================================================
unit                score
==================  ================================================================================================
layer               the loss of the model without it
hidden dimension    its part of the residual stream's energy in front of and behind the layers, each token at RMS one
neuron, head        the energy of what it writes to the residual stream, next to that of the stream there
==================  ================================================================================================

After a turn to principal components (:mod:`.rotation`) the hidden dimensions so chosen are the strongest directions. A
squared gradient instead orders the many weak ones by noise: it costs 0.6 nats on SmolLM2-135M right after shearing, and
layers chosen by it another nat (probes, one seed).

Letters: n tokens, L layers, d hidden size, I intermediate size, H heads, k head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from llmshearing.architecture.axes import HEADS, HIDDEN, INTERMEDIATE, KV_HEADS, LAYERS
from llmshearing.architecture.layouts import FINAL_NORM
from llmshearing.architecture.shapes import ModelShape
from llmshearing.errors import InputError
from llmshearing.pruning.layer_passes import advance, first_input, layer_settings, resumed
from llmshearing.pruning.scores import Scores, all_groups, mark_of


@torch.no_grad()
def score(model: nn.Module, batches: Sequence[Tensor]) -> Scores:
    """Score every unit of a model.

    Args:
        model: a ``transformers`` causal LM of a supported family, in eval mode.
        batches: token ids, (sequences, length) each, all of one shape.

    Raises:
        InputError: a family that is not supported; scores that are not finite.
    """
    source = ModelShape.from_hf_config(cast(Any, model).config)
    watch = _Watch(model, source)
    try:
        for ids in batches:
            model(input_ids=ids, use_cache=False)
    finally:
        watch.end()
    found = {**watch.scores(), LAYERS: losses_without_layers(model, batches)}
    units: dict[str, Tensor] = {
        group.dimension: found[group.dimension].view(group.shape).float().cpu() for group in all_groups(source)
    }
    for name, scores in units.items():
        if not torch.isfinite(scores).all():
            raise InputError(f"Scores of {name} are not finite. Take other text or another model, or float32.")
    return Scores(source, units, mark_of(cast(Any, model).get_input_embeddings().weight.detach()))


@torch.no_grad()
def losses_without_layers(model: nn.Module, batches: Sequence[Tensor]) -> Tensor:
    """The loss of the model without each of its layers, (L,), in nats per token.

    What is in front of a layer is run once for all that come later, which halves the work.
    """
    layers = list(cast(Any, model).model.layers)
    stream = [first_input(model, ids) for ids in batches]
    settings = [layer_settings(model, index, stream[0]) for index in range(len(layers))]
    losses = []
    for index, layer in enumerate(layers):
        without = stream
        for later in range(index + 1, len(layers)):
            without = advance(layers[later], without, settings[later])
        losses.append(sum(_loss_behind(model, x, ids) for x, ids in zip(without, batches, strict=True)))
        stream = advance(layer, stream, settings[index])
    return torch.tensor(losses) / len(batches)


def _loss_behind(model: nn.Module, stream: Tensor, ids: Tensor) -> float:
    with resumed(model, stream):
        return model(input_ids=ids, labels=ids, use_cache=False).loss.item()


class _Watch:
    """Sums over tokens of what flows through a model."""

    def __init__(self, model: nn.Module, source: ModelShape) -> None:
        self._source = source
        self._weights: Tensor  # (n, 1) of the batch's tokens: one over the stream's mean square in front of the layer
        self._hidden: Tensor | float = 0.0  # (d,)
        count = source.num_hidden_layers
        self._neurons: list[Tensor | float] = [0.0] * count  # (I,) each
        self._heads: list[Tensor | float] = [0.0] * count  # (H, k, k) each: products of what o_proj is given
        writers = {module.columns: module.name for module in source.layer if module.columns in (INTERMEDIATE, HEADS)}
        self._layers = list(cast(Any, model).model.layers)
        self._down = [cast(nn.Linear, layer.get_submodule(writers[INTERMEDIATE])) for layer in self._layers]
        self._out = [cast(nn.Linear, layer.get_submodule(writers[HEADS])) for layer in self._layers]
        self._hooks = [model.get_submodule(FINAL_NORM.name).register_forward_pre_hook(self._see_stream)]
        for index, (layer, down, out) in enumerate(zip(self._layers, self._down, self._out, strict=True)):
            self._hooks += [
                layer.register_forward_pre_hook(self._see_layer, with_kwargs=True),
                down.register_forward_pre_hook(self._see_neurons(index)),
                out.register_forward_pre_hook(self._see_heads(index)),
            ]

    def end(self) -> None:
        """See no more."""
        for hook in self._hooks:
            hook.remove()

    def scores(self) -> dict[str, Tensor]:
        """By dimension; per layer, heads by groups."""
        source = self._source
        heads = []
        for out, products in zip(self._out, self._heads, strict=True):
            maps = out.weight.float().view(-1, source.num_attention_heads, source.head_dim)  # (d, H, k)
            heads.append(torch.einsum("dhk,hkl,dhl->h", maps, cast(Tensor, products), maps))
        by_group = torch.stack(heads).view(source.num_hidden_layers, source.num_key_value_heads, -1)
        columns = [down.weight.float().square().sum(0) for down in self._down]
        neurons = [size * energy for size, energy in zip(columns, self._neurons, strict=True)]
        return {
            HIDDEN: cast(Tensor, self._hidden),
            INTERMEDIATE: torch.stack(neurons),
            KV_HEADS: by_group.sum(-1),
            HEADS: by_group,
        }

    def _see_layer(self, _: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> None:
        self._see(inputs[0] if inputs else options["hidden_states"])

    def _see_stream(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._see(inputs[0])

    def _see(self, stream: Tensor) -> None:
        x = stream.flatten(0, -2).float()
        self._weights = (x.square().mean(-1, keepdim=True) + 1e-12).reciprocal()
        self._hidden = self._hidden + (x.square() * self._weights).sum(0)

    def _see_neurons(self, index: int) -> Any:
        def see(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].flatten(0, -2).float()
            self._neurons[index] = self._neurons[index] + (x.square() * self._weights).sum(0)

        return see

    def _see_heads(self, index: int) -> Any:
        def see(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].flatten(0, -2).float() * self._weights.sqrt()
            x = x.view(len(x), self._source.num_attention_heads, self._source.head_dim)
            self._heads[index] = self._heads[index] + torch.einsum("nhk,nhl->hkl", x, x)

        return see
