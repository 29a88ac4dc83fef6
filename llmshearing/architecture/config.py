"""The Hugging Face config of a model that lost units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmshearing.architecture.axes import DIMENSIONS, HEAD_DIM
from llmshearing.architecture.families import FAMILIES
from llmshearing.architecture.shapes import ModelShape
from llmshearing.errors import InputError


def sheared_config(config: Mapping[str, Any], target: ModelShape, kept_layers: Sequence[int]) -> dict[str, Any]:
    """The source's config with the target's sizes; with ``head_dim``, which hidden / heads may not give.

    What stands there for every layer, or counts layers, goes with the layers that are kept.

    Args:
        config: the source's.
        target: shape of the sheared model.
        kept_layers: indices of the layers that it keeps of the source, ascending.

    Raises:
        InputError: this family, in the installed ``transformers``, has no config for such a model.
    """
    family = FAMILIES[config["model_type"]]
    sheared = {**config, **{name: getattr(target, name) for name in (*DIMENSIONS, HEAD_DIM)}}
    for name in family.per_layer:
        if sheared.get(name):
            sheared[name] = [config[name][layer] for layer in kept_layers]
    if sheared.get("max_window_layers") is not None:  # layers from this one on have a sliding window
        sheared["max_window_layers"] = sum(layer < config["max_window_layers"] for layer in kept_layers)
    _check_kinds(config, kept_layers, alternates=family.alternates)
    _check_long_rope(config, sheared)
    return sheared


def check_prunable(config: Mapping[str, Any], target: ModelShape) -> None:
    """Find out before training whether a model of shape ``target`` will have a config, whatever layers it keeps.

    Raises:
        InputError: see :func:`sheared_config`.
    """
    sheared_config(config, target, range(target.num_hidden_layers))


def _check_kinds(config: Mapping[str, Any], kept_layers: Sequence[int], *, alternates: bool) -> None:
    if alternates and not config.get("layer_types") and len(kept_layers) < config["num_hidden_layers"]:
        raise InputError(
            f"Layers of a '{config['model_type']}' have a sliding window or not by their index in this version of "
            "transformers, so none can be dropped. Install transformers 4.53 or later, or leave num_hidden_layers out "
            "of the target."
        )


def _check_long_rope(config: Mapping[str, Any], sheared: Mapping[str, Any]) -> None:
    """Phi-3's longrope has a factor for each frequency, whose number ``transformers`` takes from hidden / heads."""
    rope = config.get("rope_scaling") or {}
    if config["model_type"] != "phi3" or "long_factor" not in rope:
        return
    before, after = (sizes["hidden_size"] // sizes["num_attention_heads"] for sizes in (config, sheared))
    if before != after:
        raise InputError(
            f"The target's hidden_size / num_attention_heads is {after}, the source's {before}. transformers refuses "
            "that for a 'phi3' with long rope_scaling: prune both in proportion, or neither."
        )
