"""What surrounds the weights in a Hugging Face folder: config, generation config, tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from llmshearing.architecture.families import FAMILIES
from llmshearing.errors import InputError

# Weights, their index and what this package writes beside them.
_OF_THE_MODEL = re.compile(r"(config|generation_config|shearing)\.json|.*\.safetensors(\.index\.json)?|pytorch_model.*")


def folder_files(
    config: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    dtype: torch.dtype,
    path: str | Path,
    *,
    generation: Mapping[str, Any] | None = None,
) -> dict[str, bytes]:
    """The content of all that surrounds the weights, by file name, for stock ``transformers``.

    Made before the weights are written, so that a checkpoint that cannot be converted is refused at once.

    Args:
        config: the model's Hugging Face config.
        tokenizer: its files, as Composer's HuggingFaceModel stores them.
        dtype: of the weights.
        path: the checkpoint, for messages.
        generation: the model's generation config; ``None``: of the tokens that ``config`` names.

    Raises:
        InputError: a value that JSON does not have; a tokenizer file that is code, is of another form, leaves the
            folder, or has the name of a file of the model.
    """
    written = {
        **config,
        "architectures": [FAMILIES[config["model_type"]].architecture],
        "torch_dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,  # off while training
    }
    written.pop("dtype", None)  # its name since transformers 4.56, where it would win
    written.pop("_name_or_path", None)  # a path on the machine that trained
    written.pop("_attn_implementation_autoset", None)
    written.pop("auto_map", None)  # code beside the source, such as the published Phi-3's, which stays there
    tokens = {name: config.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    from_config = {"_from_model_config": True, **{name: token for name, token in tokens.items() if token is not None}}
    if generation is None:
        generation = from_config
    elif generation.get("use_cache") is False:
        generation = {name: value for name, value in generation.items() if name != "use_cache"}
    return {
        # Sorted, as transformers does: keys of sharded checkpoints come in another order.
        "config.json": as_json(written, path, sort_keys=True),
        "generation_config.json": as_json(generation, path),
        **dict(_tokenizer_file(name, file, path) for name, file in tokenizer.items()),
    }


def as_json(value: Any, path: str | Path, *, sort_keys: bool = False) -> bytes:
    """``value`` as an indented JSON file.

    Raises:
        InputError: it holds NaN, infinity or what JSON has no form for; names ``path``, the checkpoint.
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, sort_keys=sort_keys)
        return f"{text}\n".encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"'{path}' holds a config or tokenizer that JSON cannot express: {error}.") from error


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write small files by name."""
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _tokenizer_file(name: str, file: Any, path: str | Path) -> tuple[str, bytes]:
    """Name and content of one of the tokenizer's files."""
    try:
        extension, content = file["file_extension"], file["content"]
        name = name if name.endswith(extension) else name + extension
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"The tokenizer in '{path}' has a file {name!r} of another form; it is refused.") from error
    if Path(name).name != name or not name.isprintable():
        raise InputError(f"The tokenizer in '{path}' has a file {name!r} outside its folder; it is refused.")
    if _OF_THE_MODEL.fullmatch(name.lower()):  # some file systems tell no difference
        raise InputError(f"The tokenizer in '{path}' has a file '{name}', a name of the model's own; it is refused.")
    if name == "tokenizer_config.json" and isinstance(content, dict):  # sharded checkpoints keep no empty mappings
        content = {key: value for key, value in content.items() if value != {}}
    if extension == ".json":
        return name, as_json(content, path)
    lines = content if isinstance(content, list) else []
    if extension == ".txt" and all(isinstance(line, str) for line in lines):
        return name, "\n".join(lines).encode()  # the last is empty where the file ends a line
    if extension == ".jinja" and isinstance(content, str):
        return name, content.encode()
    if extension == ".model" and isinstance(content, bytes):
        return name, content
    raise InputError(f"The tokenizer in '{path}' has a file '{name}' of a kind that is not written ({extension}).")
