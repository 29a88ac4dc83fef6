"""The shape of a LLaMA-family model, in the names of its Hugging Face config."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from llmshearing.errors import InputError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Model types whose decoder layer is LLaMA's, with the small parameters that each adds to it:
# the name of the config attribute that switches them, or True where the family always has them.
FAMILIES: dict[str, dict[str, str | bool]] = {
    "llama": {"qkv_bias": "attention_bias", "output_bias": "attention_bias", "mlp_bias": "mlp_bias"},
    "mistral": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qkv_bias": "attention_bias", "output_bias": "attention_bias", "qk_norm": True},
}


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a LLaMA-family causal language model.

    The four booleans after ``tie_word_embeddings`` tell which small parameters the layers have besides their matrices.
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

    @classmethod
    def from_hf_config(cls, config: PretrainedConfig) -> Self:
        """Read the shape from a ``transformers`` config.

        Raises:
            InputError: the config's ``model_type`` is not of the LLaMA family, a size is no whole number above 0, or
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
            for name, switch in family.items()
        }
        return cls(
            hidden_size=hidden,
            intermediate_size=_size(config, "intermediate_size"),
            num_hidden_layers=_size(config, "num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=groups,
            head_dim=head_dim,
            vocab_size=_size(config, "vocab_size"),
            tie_word_embeddings=bool(config.tie_word_embeddings),
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
    def queries_per_group(self) -> int:
        """Query heads that share one key-value head."""
        return self.num_attention_heads // self.num_key_value_heads

    def num_parameters(self) -> int:
        """Number of parameters, tied embeddings counted once.

        Llama-2-7B has 6,738,415,616; the targets of Sheared LLaMA have 2,701,560,320 and 1,345,423,360.
        """
        hidden, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        attention = 2 * hidden * queries + 2 * hidden * keys
        attention += (queries + 2 * keys) * self.qkv_bias + hidden * self.output_bias + 2 * self.head_dim * self.qk_norm
        mlp = 3 * hidden * inner + (2 * inner + hidden) * self.mlp_bias
        embeddings = self.vocab_size * hidden * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * (attention + mlp + 2 * hidden) + hidden

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
