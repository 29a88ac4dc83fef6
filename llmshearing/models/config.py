"""The Hugging Face config of a LLaMA-family model: read or made, and checked before any weight is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from llmshearing.architecture.families import FAMILIES
from llmshearing.architecture.shapes import ModelShape
from llmshearing.errors import InputError, unknown_name
from llmshearing.fileio import read_json
from llmshearing.models.hub import hub_options

# Values that a model takes without a look at their type, and uses in the middle of a batch.
_LIKE = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "vocab_size": 32000}


def check_expected(config: PretrainedConfig, expected: Mapping[str, Any], where: str) -> None:
    """Refuse a config that differs from what a recipe was written for.

    Raises:
        InputError: names each differing value.
    """
    found = {name: getattr(config, name, None) for name in expected}
    differing = [
        f"{name} is {found[name]!r}, not {value!r}" for name, value in expected.items() if found[name] != value
    ]
    if differing:
        raise InputError(
            f"'{where}' is not the model that this recipe is for: {'; '.join(differing)}. "
            "Correct model.expected_config, and what follows from it, or choose another recipe."
        )


def read_config(path: str) -> PretrainedConfig:
    """The config of a Hugging Face folder or hub id, of the LLaMA family.

    Raises:
        InputError: there is none, it is damaged, or of another family.
    """
    folder = Path(path)
    try:
        exists, here = folder.exists(), (folder / "config.json").is_file()
    except (OSError, ValueError) as error:  # too long, or a character that no path has
        raise InputError(f"'{path}' is neither a folder nor a hub id: {one_line(error)}") from error
    if exists and not here:
        raise InputError(f"'{path}' has no config.json, so it is not a Hugging Face model folder.")
    if here:
        values = read_json(folder / "config.json")
        if not isinstance(values, dict):
            raise InputError(f"'{folder / 'config.json'}' is not a mapping, so it is not a Hugging Face config.")
        _check_model_type(values.get("model_type"), f"in '{path}'")
        for name, like in _LIKE.items():
            _check_kind(f"'{path}': {name}", values.get(name), like)
    try:
        config = AutoConfig.from_pretrained(path, **hub_options(path))
    except Exception as error:  # values of a wrong type may raise anything
        reached = "neither a Hugging Face model folder nor a hub id that can be reached"
        what = "has a config that cannot be used" if here else f"is {reached}"
        raise InputError(f"'{path}' {what}: {one_line(error)}") from error
    _check_model_type(config.model_type, f"in '{path}'")
    _check_shape(config, f"'{path}'")
    return config


def make_config(config: Mapping[str, Any] | str) -> PretrainedConfig:
    """The config that a mapping of Hugging Face config names, or a folder or hub id, stands for.

    Raises:
        InputError: an unknown name, a value of a wrong type, or a model that cannot be.
    """
    if isinstance(config, str):
        return read_config(config)
    values = dict(config)
    model_type = values.pop("model_type", "llama")
    _check_model_type(model_type, "in model.config")
    made = AutoConfig.for_model(model_type)
    known = {"head_dim": None, **vars(made), **made.to_dict()}  # the latter is what config.json holds
    for name, value in values.items():
        if name not in known:
            raise unknown_name("model config key", name, (name for name in known if not name.startswith("_")))
        _check_kind(f"model.config.{name}", value, known.get(name))
    # Built again from all values at once: a config derives some (head_dim, KV heads) from others.
    try:
        made = AutoConfig.for_model(model_type, **values)
    except Exception as error:  # what a value is wrong for decides what it raises
        raise InputError(f"model.config cannot be used: {one_line(error)}") from error
    _check_shape(made, "model.config")
    return made


def _check_model_type(model_type: Any, where: str) -> None:
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise unknown_name(f"model_type {where}", model_type, FAMILIES)


def _check_kind(name: str, value: Any, default: Any) -> None:
    """Refuse a config value of another type than its default: many are used only in the middle of a batch."""
    if value is None or default is None or name.endswith("_token_id"):  # token ids may be lists
        return
    kind = (int, float) if type(default) is float else type(default)
    if not isinstance(value, kind) or (isinstance(value, bool) and not isinstance(default, bool)):
        raise InputError(f"{name} is {value!r}; it must be of type {type(default).__name__}, as {default!r} is.")


def _check_shape(config: PretrainedConfig, where: str) -> None:
    try:
        ModelShape.from_hf_config(config)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def one_line(error: BaseException) -> str:
    """An error's message without its line breaks."""
    return " ".join(str(error).split()) or type(error).__name__
