"""A LLaMA-family causal language model for Composer, from a Hugging Face checkpoint or from a config."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any, cast

import torch
import transformers
from composer.metrics import LanguageCrossEntropy
from composer.models import HuggingFaceModel
from composer.utils import dist
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import is_flash_attn_2_available

from llmshearing.architecture.shapes import ModelShape
from llmshearing.errors import InputError, unknown_name
from llmshearing.models.config import check_expected, make_config, one_line
from llmshearing.models.loading import DTYPE, build_on_meta
from llmshearing.models.pretrained import load_pretrained

log = logging.getLogger(__name__)

INIT_DEVICES = ("cpu", "mixed")
ATTENTION = ("sdpa", "eager", "flash_attention_2")


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

    Attributes:
        generation: the generation config of ``pretrained`` as JSON, saved with every checkpoint so that conversion can
            write it out; ``None`` where it says nothing that the model's config does not.

    Raises:
        InputError: neither or both of ``pretrained`` and ``config``; a value of a wrong type; an unsupported family;
            weights that do not fit or are not finite; another model than ``expected_config``.
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
        _check_arguments(pretrained, config, expected_config, tokenizer, attn_implementation, init_device)
        hf_config = make_config(cast(Any, config if pretrained is None else pretrained))
        check_expected(hf_config, expected_config or {}, "config" if pretrained is None else pretrained)
        shape = ModelShape.from_hf_config(hf_config)
        if tokenizer is not None and len(tokenizer) > shape.vocab_size:
            raise InputError(
                f"The tokenizer has {len(tokenizer)} tokens but the model's vocab_size is {shape.vocab_size}. "
                "Use the model's own tokenizer."
            )
        if init_device == "mixed" and dist.get_global_rank() > 0:
            model = _build(hf_config, attn_implementation=attn_implementation, on_meta=True)
        elif pretrained is not None:
            model = load_pretrained(pretrained, attn_implementation=attn_implementation)
        else:
            model = _build(hf_config, attn_implementation=attn_implementation)
        generation = None if pretrained is None else _generation(model)
        model.config.use_cache = False  # of no use in training, where it would keep every layer's keys and values
        log.info("Model: %s, %d parameters.", shape, shape.num_parameters())
        if attn_implementation == "sdpa" and (cap := getattr(hf_config, "attn_logit_softcapping", None)):
            log.warning(
                "attn_logit_softcapping is %s, but attention by 'sdpa' leaves it out, as transformers does by default. "
                "Servers cap. Set model.attn_implementation to eager to train what they compute.",
                cap,
            )
        # What FSDP shards, and what activation checkpointing recomputes, as a unit.
        layer = type(cast(Any, model).model.layers[0])
        for wrap in ("fsdp_wrap_fn", "activation_checkpointing_fn"):
            setattr(model, wrap, lambda module: isinstance(module, layer))
        if tokenizer is not None and isinstance(tokenizer.chat_template, dict):
            log.warning("Of the tokenizer's named chat templates only the default one is saved with checkpoints.")
            tokenizer.chat_template = tokenizer.chat_template.get("default")
        super().__init__(model, tokenizer=cast(Any, tokenizer), use_logits=True, eval_metrics=[LanguageCrossEntropy()])
        self.generation = generation

    def get_metadata(self) -> dict[str, Any]:
        """What Composer saves of config and tokenizer, and the generation config, which it does not."""
        metadata = super().get_metadata()
        if self.generation is not None:
            # As text: a leaf of a sharded checkpoint, whatever is in it.
            metadata["model"]["generation_config"] = {"file_extension": ".json", "content": self.generation}
        return metadata


def _generation(model: transformers.PreTrainedModel) -> str | None:
    """A model's generation config as JSON, where it says more than the tokens that its config has."""
    own = model.generation_config
    if own is None:
        return None
    said = own.to_diff_dict()
    for name in ("_from_model_config", "transformers_version", "use_cache"):  # the last is off while training
        said.pop(name, None)
    if all(name.endswith("_token_id") and getattr(model.config, name, None) == value for name, value in said.items()):
        return None
    return json.dumps(said)


def _build(
    config: PretrainedConfig, *, attn_implementation: str, on_meta: bool = False
) -> transformers.PreTrainedModel:
    """A model with random weights, or with shapes in their place."""
    options: dict[str, Any] = {DTYPE: torch.float32, "attn_implementation": attn_implementation}
    build = build_on_meta if on_meta else cast(Any, AutoModelForCausalLM).from_config
    try:
        return build(config, **options)
    except Exception as error:  # what a value is wrong for decides what it raises
        raise InputError(f"No model can be made of this config: {one_line(error)}") from error


def _check_arguments(
    pretrained: Any, config: Any, expected_config: Any, tokenizer: Any, attn_implementation: Any, init_device: Any
) -> None:
    """Refuse arguments of :class:`ComposerLlama` that are of the wrong type, or no choice."""
    if (pretrained is None) == (config is None):
        raise InputError("Give the model either `pretrained` (a Hugging Face folder or hub id) or `config`, not both.")
    if pretrained is not None and not (isinstance(pretrained, str) and pretrained):
        raise InputError(f"model.pretrained is {pretrained!r}; it must be a Hugging Face folder or hub id.")
    if config is not None and not (isinstance(config, Mapping) or (isinstance(config, str) and config)):
        raise InputError(f"model.config is {config!r}; it must be a mapping of config names, or a folder or hub id.")
    for name, values in (("config", config), ("expected_config", expected_config)):
        if isinstance(values, Mapping) and not all(isinstance(key, str) for key in values):
            raise InputError(f"model.{name} is {dict(values)!r}; its keys must be names of Hugging Face config values.")
    if expected_config is not None and not isinstance(expected_config, Mapping):
        raise InputError(f"model.expected_config is {expected_config!r}; it must be a mapping of config names.")
    if tokenizer is not None and not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise InputError(f"model.tokenizer is {tokenizer!r}; it must be a Hugging Face tokenizer.")
    for name, value, known in (
        ("attn_implementation", attn_implementation, ATTENTION),
        ("init_device", init_device, INIT_DEVICES),
    ):
        if value not in known:
            raise unknown_name(name, value, known)
    if attn_implementation == "flash_attention_2" and not is_flash_attn_2_available():
        raise InputError(
            "model.attn_implementation is 'flash_attention_2', which needs a GPU and the package flash-attn. Install "
            "it, or choose sdpa."
        )
