"""Passes through a causal LM one layer at a time, of which no more need be in memory than what runs.

Letters: t tokens of a sequence, d hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from llmshearing.architecture import layouts

EMBEDDING, NORM, HEAD = layouts.EMBEDDING.name, layouts.FINAL_NORM.name, layouts.LM_HEAD.name


class Parts(Protocol):
    """A causal LM as ``transformers`` has it, in eval mode, whose parts have their weights while they are held."""

    model: nn.Module

    def held(self, name: str) -> AbstractContextManager[nn.Module]:
        """The submodule with its weights; what is done to them in place is lost after it, unless all are in memory."""


class InMemory:
    """A model all of whose weights are there."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def held(self, name: str) -> AbstractContextManager[nn.Module]:
        """The submodule."""
        return nullcontext(self.model.get_submodule(name))


class Stopped(Exception):  # noqa: N818
    """Ends a forward pass where nothing more of it is needed."""


def layer_name(index: int) -> str:
    """Of a decoder layer, as a submodule."""
    return f"model.layers.{index}"


def first_input(model: nn.Module, ids: Tensor) -> Tensor:
    """The residual stream in front of the first layer, (sequences, t, d)."""
    inputs, options = _call_of_layer(model, 0, input_ids=ids)
    return inputs[0] if inputs else options["hidden_states"]


def layer_settings(model: nn.Module, index: int, stream: Tensor) -> dict[str, Any]:
    """What a layer is called with besides the stream (sequences, t, d): positions, masks."""
    _, options = _call_of_layer(model, index, inputs_embeds=torch.zeros_like(stream))
    return {name: value for name, value in options.items() if name != "hidden_states"}


def _call_of_layer(model: nn.Module, index: int, **inputs: Tensor) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """What a layer is called with, the layers in front of it left out."""
    found: list[tuple[tuple[Tensor, ...], dict[str, Any]]] = []

    def stop(_: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> None:
        found.append((inputs, options))
        raise Stopped

    layer = model.get_submodule(layer_name(index))
    with with_layers(model, [layer]), _until_stopped([layer.register_forward_pre_hook(stop, with_kwargs=True)]):
        model(**inputs, use_cache=False)
    return found[0]


def advance(layer: nn.Module, stream: Sequence[Tensor], settings: dict[str, Any]) -> list[Tensor]:
    """What a layer makes of a residual stream."""
    outputs = (layer(x, **settings) for x in stream)
    return [output[0] if isinstance(output, tuple) else output for output in outputs]


def tap(
    layer: nn.Module, names: Sequence[str], x: Tensor, settings: dict[str, Any]
) -> dict[str, tuple[Tensor, Tensor]]:
    """What modules of a layer are given and give, by their names; the pass ends with the last of them."""
    taps: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            taps[name] = (inputs[0], output)
            if len(taps) == len(names):
                raise Stopped

        return hook

    with _until_stopped([layer.get_submodule(name).register_forward_hook(keep(name)) for name in names]):
        layer(x, **settings)
    return taps


@contextmanager
def resumed(model: nn.Module, stream: Tensor) -> Iterator[None]:
    """The model as if its last layer had just given ``stream``, whatever ids it is called with."""

    def take(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (stream,)

    hook = model.get_submodule(NORM).register_forward_pre_hook(take)
    try:
        with with_layers(model, []):
            yield
    finally:
        hook.remove()


@contextmanager
def with_layers(model: nn.Module, layers: Sequence[nn.Module]) -> Iterator[None]:
    """The model with these layers for its own."""
    backbone = cast(Any, model).model
    own = backbone.layers
    backbone.layers = nn.ModuleList(layers)
    try:
        yield
    finally:
        backbone.layers = own


@contextmanager
def _until_stopped(hooks: Sequence[Any]) -> Iterator[None]:
    """Run until the pass is stopped, and take the hooks off."""
    try:
        yield
    except Stopped:
        pass
    finally:
        for hook in hooks:
            hook.remove()
