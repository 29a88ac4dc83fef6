"""Tiny random models of every supported family, for tests."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

SIZES = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,  # not hidden / heads: it is free in most families
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # masks must matter
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
BIASED = {"attention_bias": True, "mlp_bias": True}
# name -> model_type and what differs from SIZES
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("llama", {"num_key_value_heads": 8}),
    "llama3": ("llama", {"rope_scaling": LLAMA3_ROPE}),
    "llama-biased": ("llama", BIASED),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "mistral": ("mistral", {"sliding_window": 8}),
    "mistral-tied": ("mistral", {"sliding_window": None, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", {}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
    "qwen3-tied": ("qwen3", {"tie_word_embeddings": True}),
    "granite": ("granite", {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0, **BIASED}),
    "granite-tied": ("granite", {"tie_word_embeddings": True, "attention_multiplier": 0.3}),
    "smollm3": ("smollm3", {"no_rope_layers": [0, 1, 1, 0], "tie_word_embeddings": False, "pad_token_id": 0, **BIASED}),
    "smollm3-tied": ("smollm3", {"no_rope_layers": [1, 0, 1, 0], "pad_token_id": 0}),
    "phi3": ("phi3", {"sliding_window": 8, "pad_token_id": 0}),
    "phi3-tied": ("phi3", {"partial_rotary_factor": 0.75, "tie_word_embeddings": True, "pad_token_id": 0}),
    "glm": ("glm", {"attention_bias": True, "pad_token_id": 0}),
    "glm-tied": ("glm", {"tie_word_embeddings": True, "pad_token_id": 0}),
    "glm4": ("glm4", {"attention_bias": True, "pad_token_id": 0}),
    "glm4-tied": ("glm4", {"tie_word_embeddings": True, "pad_token_id": 0}),
    "olmo2": ("olmo2", {}),
    "olmo2-tied": ("olmo2", {"tie_word_embeddings": True, "attention_bias": True}),
    "gemma2-tied": ("gemma2", {"sliding_window": 8, "query_pre_attn_scalar": 12}),
    "gemma2": ("gemma2", {"tie_word_embeddings": False, "attention_bias": True}),
    "gemma3-tied": ("gemma3_text", {"sliding_window": 8, "sliding_window_pattern": 2}),
    "gemma3": ("gemma3_text", {"tie_word_embeddings": False, "sliding_window": 8, "final_logit_softcapping": 5.0}),
}


def make_config(family: str, **changes: Any) -> PretrainedConfig:
    """A config of the family; ``changes`` override."""
    model_type, own = FAMILIES[family]
    return AutoConfig.for_model(model_type, **{**SIZES, **own, **changes}, use_cache=False)


def make_model(family: str, *, seed: int = 0, attn_implementation: str = "sdpa", **changes: Any) -> PreTrainedModel:
    """A random model in eval mode whose norms and biases are random too, so that no mistake cancels."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(make_config(family, **changes), attn_implementation=attn_implementation)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
    return model.eval()


def token_ids(*, batch: int = 2, length: int = 24, seed: int = 0) -> torch.Tensor:
    """Random ids, (batch, length)."""
    return torch.randint(0, SIZES["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(seed))
