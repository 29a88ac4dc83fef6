"""Random models for the check, none of which needs a download."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from llmshearing.architecture.families import FAMILIES
from llmshearing.models.loading import DTYPE

_TINY = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,  # masks must matter
    "pad_token_id": 0,
    "use_cache": False,
}
HALF = {
    "num_hidden_layers": 2,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}  # of _TINY
# name -> its config, tokens per sequence
SIZES: dict[str, tuple[dict[str, Any], int]] = {
    "small": ({**_TINY, "model_type": "llama"}, 32),
    "135M": (  # SmolLM2-135M's
        {
            "model_type": "llama",
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
        },
        2048,
    ),
    "1B": (  # TinyLlama's
        {
            "model_type": "llama",
            "vocab_size": 32000,
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 22,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
        },
        2048,
    ),
}


def families(small: bool) -> list[str]:
    """Every family, or two that differ most."""
    return ["llama", "gemma3_text"] if small else list(FAMILIES)


def tiny_config(family: str) -> PretrainedConfig:
    """Of every family, for exactness."""
    return AutoConfig.for_model(family, **_TINY)


def build(config: PretrainedConfig, device: torch.device, *, attention: str = "sdpa", seed: int = 0) -> PreTrainedModel:
    """In float32, drawn on the device."""
    torch.manual_seed(seed)
    options: dict[str, Any] = {DTYPE: torch.float32, "attn_implementation": attention}
    with device:
        model = cast(Any, AutoModelForCausalLM).from_config(config, **options)
    return model.to(device)  # what the family makes elsewhere


def tokens(config: PretrainedConfig, sequences: int, length: int) -> Tensor:
    """The same on every device, ``(sequences, length)``."""
    return torch.randint(1, config.vocab_size, (sequences, length), generator=torch.Generator().manual_seed(0))


def logits_of(model: PreTrainedModel, ids: Tensor, *, autocast: bool = False) -> Tensor:
    """On the CPU and in float32, in eval mode; with ``autocast`` computed in bfloat16."""
    device = next(model.parameters()).device
    with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
        return model.eval()(input_ids=ids.to(device)).logits.float().cpu()


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest, relative to the largest value of ``theirs``."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()
