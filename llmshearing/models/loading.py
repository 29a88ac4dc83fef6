"""How ``transformers`` is asked for a causal LM, the same for all its versions that we take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from llmshearing.models.hub import hub_options

# Called so since 4.56, where the old name says on stderr that it is deprecated.
DTYPE = "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype"


def load_reporting(name: str, *, dtype: torch.dtype, **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A causal LM from a folder or the hub, and what ``transformers`` reports of its keys.

    Args:
        name: Hugging Face folder or hub id.
        dtype: of its weights.
        options: of ``from_pretrained``.
    """
    options |= {DTYPE: dtype, "output_loading_info": True, **hub_options(name)}
    return cast(Any, AutoModelForCausalLM).from_pretrained(name, **options)


def build_on_meta(config: PretrainedConfig, **options: Any) -> PreTrainedModel:
    """A causal LM of ``config`` whose parameters have shapes only; its buffers, which no checkpoint has, are real."""
    with torch.device("cpu"), _parameters_on_meta():
        return cast(Any, AutoModelForCausalLM).from_config(config, **options)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:  # one that is tied stays the same object
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
