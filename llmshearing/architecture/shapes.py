"""The shape of a model, in the names of its Hugging Face config, and the tensors that follow from it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from llmshearing.architecture.axes import HEADS, KV_HEADS, Axis
from llmshearing.architecture.families import FAMILIES, Family
from llmshearing.architecture.layouts import OUTER, TIED_OUTER
from llmshearing.architecture.modules import Module
from llmshearing.errors import InputError

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a causal language model of one of the supported families.

    The four booleans after ``tie_word_embeddings`` tell which small parameters the layers have besides their matrices,
    and ``model_type`` which modules.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    model_type: str = dataclasses.field(default="llama", compare=False)  # checkpoints of 0.1 do not say it

    @classmethod
    def from_hf_config(cls, config: PretrainedConfig) -> Self:
        """Read the shape from a ``transformers`` config.

        Raises:
            InputError: the config's ``model_type`` is not supported, a size is no whole number above 0, or
                ``head_dim`` is odd.
        """
        family = FAMILIES.get(config.model_type) if isinstance(config.model_type, str) else None
        if family is None:
            raise InputError(
                f"Models of type '{config.model_type}' are not supported. Supported: {', '.join(sorted(FAMILIES))}."
            )
        heads, hidden = _size(config, "num_attention_heads"), _size(config, "hidden_size")
        groups = _size(config, "num_key_value_heads", heads)
        if heads % groups:
            raise InputError(f"num_attention_heads is {heads}, not a multiple of num_key_value_heads, {groups}.")
        head_dim = _size(config, "head_dim", hidden // heads)
        if head_dim % 2:
            raise InputError(f"head_dim is {head_dim}; rotary positions turn pairs, so it must be even.")
        extras = {
            name: bool(getattr(config, switch, False) if isinstance(switch, str) else switch)
            for name, switch in family.switches.items()
        }
        return cls(
            hidden_size=hidden,
            intermediate_size=_size(config, "intermediate_size"),
            num_hidden_layers=_size(config, "num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=groups,
            head_dim=head_dim,
            vocab_size=_size(config, "vocab_size"),
            tie_word_embeddings=bool(getattr(config, "tie_word_embeddings", family.tied)),
            model_type=config.model_type,
            **extras,
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`."""
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain numbers and booleans, for checkpoints and JSON."""
        return dataclasses.asdict(self)

    @property
    def family(self) -> Family:
        """The entry of its family."""
        return FAMILIES[self.model_type]

    @property
    def outer(self) -> tuple[Module, ...]:
        """The modules outside the decoder layers."""
        return TIED_OUTER if self.tie_word_embeddings else OUTER

    @property
    def layer(self) -> tuple[Module, ...]:
        """The modules of a decoder layer."""
        layout = self.family.layout
        return tuple(module for module in layout if module.present is None or getattr(self, module.present))

    def length(self, axis: Axis) -> int:
        """Entries of an axis of a tensor: a head counts with its dimensions."""
        return getattr(self, axis) * (self.head_dim if axis in (HEADS, KV_HEADS) else 1)

    @property
    def queries_per_group(self) -> int:
        """Query heads that share one key-value head."""
        return self.num_attention_heads // self.num_key_value_heads

    def num_parameters(self) -> int:
        """Number of parameters, tied embeddings counted once.

        Llama-2-7B has 6,738,415,616; the targets of Sheared LLaMA have 2,701,560,320 and 1,345,423,360.
        """
        return sum(math.prod(shape) for shape in parameter_shapes(self).values())

    def __str__(self) -> str:
        return (
            f"{self.num_hidden_layers} layers, hidden {self.hidden_size}, intermediate {self.intermediate_size}, "
            f"{self.num_attention_heads} heads / {self.num_key_value_heads} KV heads of {self.head_dim}"
        )


def _size(config: PretrainedConfig, name: str, default: int | None = None) -> int:
    """A size in a config; ``default``, if there is one, stands for what is missing or ``None``."""
    value = getattr(config, name) if default is None else getattr(config, name, None) or default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} is {value!r}; it must be a whole number above 0.")
    return value


_LAYER_KEY = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")


def find_module(key: str, shape: ModelShape) -> tuple[Module, int | None] | None:
    """The module and the layer's index for a Hugging Face parameter name; ``None`` for a name that is not there.

    A tied ``lm_head.weight`` is the embedding.
    """
    if match := _LAYER_KEY.fullmatch(key):
        name, modules, layer = match[2], shape.family.layout, int(match[1])
    else:
        name, modules, layer = key.removesuffix(".weight").removesuffix(".bias"), shape.outer, None
        if name == "lm_head" and shape.tie_word_embeddings:
            name = "model.embed_tokens"
    return next(((module, layer) for module in modules if module.name == name), None)


def parameter_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by Hugging Face name, in the order of the model; a tied ``lm_head`` is not listed."""
    embedding, *after = shape.outer
    layer = _shapes(shape.layer, shape)
    layers = {
        f"model.layers.{index}.{name}": size for index in range(shape.num_hidden_layers) for name, size in layer.items()
    }
    return {**_shapes([embedding], shape), **layers, **_shapes(after, shape)}


def _shapes(modules: Iterable[Module], shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of some modules."""
    shapes: dict[str, tuple[int, ...]] = {}
    for module in modules:
        rows = sum(shape.length(axis) for axis in module.rows)
        shapes[f"{module.name}.weight"] = (rows,) if module.columns is None else (rows, shape.length(module.columns))
        if module.bias is not None and getattr(shape, module.bias):
            shapes[f"{module.name}.bias"] = (rows,)
    return shapes
