"""How ``transformers`` is asked for a causal LM, the same for all its versions that we take."""

from __future__ import annotations

from typing import Any, cast

import torch
import transformers
from packaging.version import Version
from transformers import AutoModelForCausalLM, PreTrainedModel

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
