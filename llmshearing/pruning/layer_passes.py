"""Passes through the decoder layers of a live model, one layer at a time.

Letters: t tokens of a sequence, d hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn


class Stopped(Exception):  # noqa: N818
    """Ends a layer's forward pass where nothing more of it is needed."""


def layers(model: nn.Module) -> Sequence[nn.Module]:
    return cast(Any, model).model.layers


def advance(stream: list[Tensor], layers: Sequence[nn.Module], settings: Sequence[dict[str, Any]]) -> list[Tensor]:
    """What the layers make of a residual stream."""
    for layer, options in zip(layers, settings, strict=True):
        outputs = (layer(x, **options) for x in stream)
        stream = [output[0] if isinstance(output, tuple) else output for output in outputs]
    return stream


def tap(layer: nn.Module, names: Sequence[str], x: Tensor, options: dict[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
    """What modules of a layer are given and give, by their names; the pass ends with the last of them."""
    taps: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            taps[name] = (inputs[0], output)
            if len(taps) == len(names):
                raise Stopped

        return hook

    hooks = [layer.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    with _until_stopped(hooks):
        layer(x, **options)
    return taps


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


def first_input(model: nn.Module, ids: Tensor) -> Tensor:
    """The residual stream in front of the first layer, (sequences, t, d)."""
    found: list[Tensor] = []

    def stop(_: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> None:
        found.append(inputs[0] if inputs else options["hidden_states"])
        raise Stopped

    with _until_stopped([layers(model)[0].register_forward_pre_hook(stop, with_kwargs=True)]):
        model(input_ids=ids, use_cache=False)
    return found[0]


def layer_settings(model: nn.Module, ids: Tensor) -> list[dict[str, Any]]:
    """What each layer is called with besides the stream: positions, masks."""
    found: list[dict[str, Any]] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> None:
        found.append({name: value for name, value in options.items() if name != "hidden_states"})

    with _until_stopped([layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers(model)]):
        model(input_ids=ids, use_cache=False)
    return found
