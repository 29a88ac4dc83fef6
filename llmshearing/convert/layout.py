"""The tensors that a model of some shape has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from llmshearing.convert.stored import StoredTensor
from llmshearing.errors import InputError
from llmshearing.shape import ModelShape

_SHOWN = 5


def parameter_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by Hugging Face name, in the order of the model; a tied ``lm_head`` is not listed."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    queries, keys = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    layer: dict[str, tuple[int, ...]] = {}

    def linear(name: str, rows: int, columns: int, *, bias: bool) -> None:
        layer[f"{name}.weight"] = (rows, columns)
        if bias:
            layer[f"{name}.bias"] = (rows,)

    linear("self_attn.q_proj", queries, hidden, bias=shape.qkv_bias)
    linear("self_attn.k_proj", keys, hidden, bias=shape.qkv_bias)
    linear("self_attn.v_proj", keys, hidden, bias=shape.qkv_bias)
    linear("self_attn.o_proj", hidden, queries, bias=shape.output_bias)
    if shape.qk_norm:
        layer["self_attn.q_norm.weight"] = layer["self_attn.k_norm.weight"] = (shape.head_dim,)
    linear("mlp.gate_proj", inner, hidden, bias=shape.mlp_bias)
    linear("mlp.up_proj", inner, hidden, bias=shape.mlp_bias)
    linear("mlp.down_proj", hidden, inner, bias=shape.mlp_bias)
    layer["input_layernorm.weight"] = layer["post_attention_layernorm.weight"] = (hidden,)
    layers = {
        f"model.layers.{index}.{name}": size for index in range(shape.num_hidden_layers) for name, size in layer.items()
    }
    embedding = {"model.embed_tokens.weight": (shape.vocab_size, hidden)}
    head = {} if shape.tie_word_embeddings else {"lm_head.weight": (shape.vocab_size, hidden)}
    return {**embedding, **layers, "model.norm.weight": (hidden,), **head}


def shape_of_config(config: Mapping[str, Any], path: str | Path) -> ModelShape:
    """The shape that a saved Hugging Face config describes.

    Raises:
        InputError: another family, or a config in which a size is missing or is no size.
    """
    try:
        return ModelShape.from_hf_config(cast(Any, SimpleNamespace(**config)))
    except AttributeError as error:
        raise InputError(f"The Hugging Face config in '{path}' has no {error.name}.") from error
    except (ValueError, TypeError) as error:  # TypeError: a key that is not a string
        raise InputError(f"The model in '{path}' cannot be converted. {error}") from error


def select(tensors: Mapping[str, StoredTensor], shape: ModelShape, path: str | Path) -> dict[str, StoredTensor]:
    """Exactly the tensors of a model of ``shape``, in the model's order.

    Raises:
        InputError: tensors are missing or foreign, or have another shape.
    """
    wanted = parameter_shapes(shape)
    foreign = tensors.keys() - wanted.keys()
    if shape.tie_word_embeddings:  # saved under both names
        foreign -= {"lm_head.weight"}
    for problem, names in (
        ("lacks", [name for name in wanted if name not in tensors]),
        ("holds tensors that the model has no place for:", sorted(foreign)),
        (
            "holds other shapes than the config says for",
            [n for n in wanted if n in tensors and tensors[n].shape != wanted[n]],
        ),
    ):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            raise InputError(f"'{path}' {problem} {', '.join(names[:_SHOWN])}{more} ({shape}).")
    return {name: tensors[name] for name in wanted}
