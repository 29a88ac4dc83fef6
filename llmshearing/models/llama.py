"""A LLaMA-family causal language model for Composer, from a Hugging Face checkpoint or from a config."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from composer.metrics import LanguageCrossEntropy
from composer.models import HuggingFaceModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from llmshearing.errors import InputError, unknown_name
from llmshearing.shape import FAMILIES, ModelShape

log = logging.getLogger(__name__)


class ComposerLlama(HuggingFaceModel):
    """Any Hugging Face model of the LLaMA family (Llama, Mistral, Qwen2, Qwen3) as a Composer model.

    Args:
        pretrained: a Hugging Face folder or hub id to start from, in float32.
        config: instead of ``pretrained``, a config to initialise at random: a mapping of Hugging Face config names
            (``model_type`` defaults to ``llama``), or a folder or hub id that has a ``config.json``.
        expected_config: Hugging Face config values that the model must have, so that a recipe for one model is not
            run on another; a dry run takes them where ``pretrained`` is not here yet.
        tokenizer: saved with every checkpoint, so that conversion can write it out.
        attn_implementation: ``sdpa``, ``eager`` or ``flash_attention_2``.

    Raises:
        InputError: neither or both of ``pretrained`` and ``config``; an unsupported family; weights that do not fit;
            another model than ``expected_config``.
    """

    def __init__(
        self,
        *,
        pretrained: str | None = None,
        config: Mapping[str, Any] | str | None = None,
        expected_config: Mapping[str, Any] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        attn_implementation: str = "sdpa",
    ) -> None:
        if (pretrained is None) == (config is None):
            raise InputError(
                "Give the model either `pretrained` (a Hugging Face folder or hub id) or `config`, not both."
            )
        if pretrained is not None:
            check_expected(_read_config(pretrained), expected_config or {}, pretrained)
            model = load_pretrained(pretrained, attn_implementation=attn_implementation)
        else:
            assert config is not None
            hf_config = _make_config(config)
            check_expected(hf_config, expected_config or {}, "config")
            hf_config.use_cache = False
            model = AutoModelForCausalLM.from_config(hf_config, attn_implementation=attn_implementation)
        shape = ModelShape.from_hf_config(model.config)
        log.info("Model: %s, %d parameters.", shape, shape.num_parameters())
        if tokenizer is not None and len(tokenizer) > shape.vocab_size:
            raise InputError(
                f"The tokenizer has {len(tokenizer)} tokens but the model's vocab_size is {shape.vocab_size}. "
                "Use the model's own tokenizer."
            )
        # What FSDP shards, and what activation checkpointing recomputes, as a unit.
        layer = type(model.model.layers[0])
        model.fsdp_wrap_fn = lambda module: isinstance(module, layer)
        model.activation_checkpointing_fn = lambda module: isinstance(module, layer)
        super().__init__(model, tokenizer=cast(Any, tokenizer), use_logits=True, eval_metrics=[LanguageCrossEntropy()])


def load_pretrained(path: str, *, attn_implementation: str = "sdpa") -> transformers.PreTrainedModel:
    """Load a model of the LLaMA family strictly, in float32.

    Raises:
        InputError: no such model, another family, or weights that miss or do not fit a parameter.
    """
    check_family(_read_config(path), path)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            path, torch_dtype=torch.float32, attn_implementation=attn_implementation, output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"The weights in '{path}' cannot be loaded: {error}") from error
    for problem, keys in (("lack", info["missing_keys"]), ("do not fit", info["mismatched_keys"])):
        if keys:
            raise InputError(
                f"The weights in '{path}' {problem} {len(keys)} parameters of its config: {sorted(keys)[:5]}."
            )
    if info["unexpected_keys"]:
        raise InputError(
            f"The weights in '{path}' hold {len(info['unexpected_keys'])} tensors that its config has no place for: "
            f"{sorted(info['unexpected_keys'])[:5]}."
        )
    total = sum(1 for _ in model.parameters())
    log.info("Loaded %d of %d tensors from '%s'.", total, total, path)
    return model


def check_family(config: PretrainedConfig, where: str) -> None:
    """Refuse a config whose architecture pruning does not know.

    Raises:
        InputError: names the architecture and the supported ones.
    """
    if config.model_type not in FAMILIES:
        raise unknown_name(f"model_type in '{where}'", config.model_type, FAMILIES)


def check_expected(config: PretrainedConfig, expected: Mapping[str, Any], where: str) -> None:
    """Refuse a config that differs from what a recipe was written for.

    Raises:
        InputError: names each differing value.
    """
    found = {name: getattr(config, name, None) for name in expected}
    differing = [f"{name} is {found[name]}, not {value}" for name, value in expected.items() if found[name] != value]
    if differing:
        raise InputError(
            f"'{where}' is not the model that this recipe is for: {'; '.join(differing)}. "
            "Correct model.expected_config, and what follows from it, or choose another recipe."
        )


def _read_config(path: str) -> PretrainedConfig:
    if Path(path).exists() and not (Path(path) / "config.json").is_file():
        raise InputError(f"'{path}' has no config.json, so it is not a Hugging Face model folder.")
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"'{path}' is neither a Hugging Face model folder nor a hub id that can be reached: {error}"
        ) from error


def _make_config(config: Mapping[str, Any] | str) -> PretrainedConfig:
    if isinstance(config, str):
        made = _read_config(config)
        check_family(made, config)
        return made
    values = dict(config)
    model_type = values.pop("model_type", "llama")
    if model_type not in FAMILIES:
        raise unknown_name("model_type", model_type, FAMILIES)
    made = AutoConfig.for_model(model_type)
    for name in values:
        if not hasattr(made, name) and name != "head_dim":
            raise unknown_name("model config key", name, [key for key in vars(made) if not key.startswith("_")])
    # Built again from all values at once: a config derives some (head_dim, KV heads) from others.
    return AutoConfig.for_model(model_type, **values)
