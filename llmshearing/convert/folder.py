"""What surrounds the weights in a Hugging Face folder: config, generation config, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from llmshearing.errors import InputError
from llmshearing.fileio import write_json
from llmshearing.shape import FAMILIES, ModelShape

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
assert _ARCHITECTURES.keys() == FAMILIES.keys()


def sheared_config(config: Mapping[str, Any], target: ModelShape, kept_layers: list[int]) -> dict[str, Any]:
    """The source's config with the target's sizes; with ``head_dim``, which hidden / heads may not give."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    sheared = {**config, **{name: getattr(target, name) for name in (*names, "head_dim")}}
    if sheared.get("layer_types"):  # attention kind of each layer, where the family has several
        sheared["layer_types"] = [config["layer_types"][layer] for layer in kept_layers]
    return sheared


def write_config(folder: Path, config: Mapping[str, Any], dtype: torch.dtype) -> None:
    """Write ``config.json`` and ``generation_config.json`` for stock ``transformers``."""
    written = {
        **config,
        "architectures": [_ARCHITECTURES[config["model_type"]]],
        "torch_dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,  # off while training
    }
    written.pop("_name_or_path", None)  # a path on the machine that trained
    written.pop("_attn_implementation_autoset", None)
    # Sorted, as transformers does: keys of sharded checkpoints come in another order.
    write_json(folder / "config.json", json.loads(json.dumps(written, sort_keys=True)))
    tokens = {name: config.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(
        folder / "generation_config.json",
        {"_from_model_config": True, **{name: token for name, token in tokens.items() if token is not None}},
    )


def write_tokenizer(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the tokenizer's files as Composer's HuggingFaceModel stores them in a checkpoint.

    Raises:
        InputError: a file that is code, or a name that leaves the folder.
    """
    for name, file in files.items():
        extension, content = file["file_extension"], file["content"]
        name = name if name.endswith(extension) else name + extension
        if Path(name).name != name:
            raise InputError(f"The checkpoint's tokenizer has a file '{name}' outside its folder; it is refused.")
        path = folder / name
        if name == "tokenizer_config.json":  # sharded checkpoints keep no empty mappings
            content = {key: value for key, value in content.items() if value != {}}
        if extension == ".json":
            path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        elif extension == ".txt":
            path.write_text("".join(f"{line}\n" for line in content), encoding="utf-8")
        elif extension == ".jinja":
            path.write_text(content, encoding="utf-8")
        elif extension == ".model":
            path.write_bytes(content)
        else:
            raise InputError(
                f"The checkpoint's tokenizer has a file '{name}' of a kind that is not written ({extension})."
            )
