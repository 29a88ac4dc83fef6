"""Targeted structured pruning and dynamic batch loading for MosaicML Composer.

After "Sheared LLaMA: Accelerating Language Model Pre-training via Structured Pruning" (Xia et al., ICLR 2024). The
names below are imported on first use: ``import llmshearing`` alone loads neither Composer nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmshearing.architecture.shapes import ModelShape
    from llmshearing.data.callback import DynamicBatchLoading
    from llmshearing.data.dataset import DynamicStreamingDataset
    from llmshearing.distillation import SourceDistillation
    from llmshearing.models.llama import ComposerLlama
    from llmshearing.pruning.algorithm import TargetedPruning

__version__ = "0.1.0"

__all__ = [
    "ComposerLlama",
    "DynamicBatchLoading",
    "DynamicStreamingDataset",
    "ModelShape",
    "SourceDistillation",
    "TargetedPruning",
]

_MODULES = {
    "ComposerLlama": "llmshearing.models.llama",
    "DynamicBatchLoading": "llmshearing.data.callback",
    "DynamicStreamingDataset": "llmshearing.data.dataset",
    "ModelShape": "llmshearing.architecture.shapes",
    "SourceDistillation": "llmshearing.distillation",
    "TargetedPruning": "llmshearing.pruning.algorithm",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
