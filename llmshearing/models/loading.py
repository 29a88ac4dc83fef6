"""How ``transformers`` is asked for a causal LM, the same for all its versions that we take."""

from __future__ import annotations

from typing import Any, cast

import torch
import transformers
from packaging.version import Version
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel

from llmshearing.models.hub import hub_options

# Called so since 4.56, where the old name says on stderr that it is deprecated.
DTYPE = "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype"


def default_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def default_dtype(given: str | None) -> str:
    """What models are evaluated in there: as ``given``, else bfloat16 on a GPU and float32 on a CPU."""
    return given or ("bfloat16" if default_device().type == "cuda" else "float32")


def load_reporting(name: str, *, dtype: torch.dtype, **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A causal LM from a folder or the hub, and what ``transformers`` reports of its keys.

    Args:
        name: Hugging Face folder or hub id.
        dtype: of its weights.
        options: of ``from_pretrained``.
    """
    options |= {DTYPE: dtype, "output_loading_info": True, **hub_options(name)}
    return cast(Any, AutoModelForCausalLM).from_pretrained(name, **options)


class _AsItWasRead(GenerationConfig):
    """A generation config that is written whatever it holds."""

    def validate(self, *_: Any, **__: Any) -> None:
        """Refuse nothing."""


def keep_generation_config(model: PreTrainedModel) -> None:
    """Let ``save_pretrained`` write the generation config that was read.

    It refuses, once all work is done, what is published and loads: a temperature without ``do_sample``, say.
    """
    if model.generation_config is not None:
        model.generation_config.__class__ = _AsItWasRead


def build_on_meta(config: PretrainedConfig, **options: Any) -> PreTrainedModel:
    """A causal LM of ``config`` whose parameters have shapes only; its buffers, which no checkpoint has, are real.

    Args:
        config: the model's.
        options: of ``from_config``.
    """

    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:  # a tied one, which must stay the same
            return None
        return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    hook = register_module_parameter_registration_hook(cast(Any, to_meta))  # typed to return nothing
    try:
        with torch.device("cpu"):
            return cast(Any, AutoModelForCausalLM).from_config(config, **options)
    finally:
        hook.remove()
