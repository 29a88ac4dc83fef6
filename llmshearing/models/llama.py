"""A LLaMA-family causal language model for Composer, from a Hugging Face checkpoint or from a config."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from composer.metrics import LanguageCrossEntropy
from composer.models import HuggingFaceModel
from composer.utils import dist
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from llmshearing.errors import InputError, unknown_name
from llmshearing.shape import FAMILIES, ModelShape

log = logging.getLogger(__name__)

INIT_DEVICES = ("cpu", "mixed")


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
        init_device: ``cpu``: every rank reads or initialises the weights. ``mixed``: rank 0 does, the others have
            shapes only (``meta``) until FSDP2 hands every rank its shards; the same as ``cpu`` on one rank.

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
        init_device: str = "cpu",
    ) -> None:
        if (pretrained is None) == (config is None):
            raise InputError(
                "Give the model either `pretrained` (a Hugging Face folder or hub id) or `config`, not both."
            )
        if init_device not in INIT_DEVICES:
            raise unknown_name("init_device", init_device, INIT_DEVICES)
        hf_config = _make_config(cast(Any, config if pretrained is None else pretrained))
        check_expected(hf_config, expected_config or {}, "config" if pretrained is None else pretrained)
        if init_device == "mixed" and dist.get_global_rank() > 0:
            model = _build_on_meta(hf_config, attn_implementation=attn_implementation)
        elif pretrained is not None:
            model = load_pretrained(pretrained, attn_implementation=attn_implementation)
        else:
            model = _build(hf_config, attn_implementation=attn_implementation)
        model.config.use_cache = False  # of no use in training, where it would keep every layer's keys and values
        shape = ModelShape.from_hf_config(model.config)
        log.info("Model: %s, %d parameters.", shape, shape.num_parameters())
        if tokenizer is not None and len(tokenizer) > shape.vocab_size:
            raise InputError(
                f"The tokenizer has {len(tokenizer)} tokens but the model's vocab_size is {shape.vocab_size}. "
                "Use the model's own tokenizer."
            )
        # What FSDP shards, and what activation checkpointing recomputes, as a unit.
        layer = type(cast(Any, model).model.layers[0])
        for wrap in ("fsdp_wrap_fn", "activation_checkpointing_fn"):
            setattr(model, wrap, lambda module: isinstance(module, layer))
        super().__init__(model, tokenizer=cast(Any, tokenizer), use_logits=True, eval_metrics=[LanguageCrossEntropy()])


def load_pretrained(path: str, *, attn_implementation: str = "sdpa") -> transformers.PreTrainedModel:
    """Load a model of the LLaMA family strictly, in float32.

    Raises:
        InputError: no such model, another family, or weights that miss or do not fit a parameter.
    """
    check_family(_read_config(path), path)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            path,
            torch_dtype=torch.float32,
            attn_implementation=attn_implementation,
            output_loading_info=True,
            weights_only=True,  # of .bin files, which are pickles
            ignore_mismatched_sizes=True,  # to name them all, below
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise InputError(f"The weights in '{path}' cannot be loaded: {_reason(error)}") from error
    lacking, foreign = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    differing = sorted(map(str, info["mismatched_keys"]))
    total = sum(1 for _ in model.parameters())  # tied ones count once
    count = f"Loaded {total - len(lacking) - len(differing)} of {total} tensors from '{path}'"
    for problem, names in (
        ("does not have", lacking),
        ("has in another shape than its config says", differing),
        ("has besides those of its config", foreign),
    ):
        if names:
            raise InputError(f"{count}. It is refused for {len(names)} that it {problem}: {', '.join(names[:5])}.")
    log.info("%s.", count)
    return model


def _reason(error: BaseException) -> str:
    """What really went wrong: transformers reports a refused or damaged pickle as a missing file."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, pickle.UnpicklingError):
            return "a .bin file is damaged, or holds objects that could run code when read. Use safetensors."
        cause = cause.__cause__ or cause.__context__
    return str(error)


def _build(config: PretrainedConfig, *, attn_implementation: str) -> transformers.PreTrainedModel:
    return AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation, torch_dtype=torch.float32)


def _build_on_meta(config: PretrainedConfig, *, attn_implementation: str) -> transformers.PreTrainedModel:
    """The model with shapes in place of weights; its rotary frequencies are real, since no state dict has them."""
    with torch.device("meta"):
        model = _build(config, attn_implementation=attn_implementation)
    backbone = cast(Any, model).model
    backbone.rotary_emb = type(backbone.rotary_emb)(config=config)
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
