"""Which tensors of a checkpoint are the model's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from llmshearing.architecture.shapes import ModelShape, parameter_shapes
from llmshearing.convert.stored import StoredTensor
from llmshearing.errors import InputError

_SHOWN = 5


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
