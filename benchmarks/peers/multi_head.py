"""A copy of a grouped-query model that computes the same with a key-value head for every query head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality.sources import Source
from llmshearing.fileio import new_folder
from llmshearing.models.pretrained import load_pretrained


def multi_head_copy(model_name: str, out: Path) -> None:
    """Write the copy: every key-value head once for each query head that reads it.

    Args:
        model_name: Hugging Face folder of a model with ``k_proj`` and ``v_proj``.
        out: the folder to create.
    """
    model: Any = load_pretrained(model_name)
    config = model.config
    queries = config.num_attention_heads // config.num_key_value_heads
    weights = {
        name: _repeat(weight, queries, config.head_dim) if ".k_proj." in name or ".v_proj." in name else weight
        for name, weight in model.state_dict().items()
    }
    config.num_key_value_heads = config.num_attention_heads
    copy: Any = type(model)(config)
    copy.load_state_dict(weights)
    with new_folder(out) as folder:
        copy.save_pretrained(folder)


def _repeat(weight: torch.Tensor, times: int, head_dim: int) -> torch.Tensor:
    """Every head of a matrix's rows, or of a bias, that many times."""
    return weight.unflatten(0, (-1, head_dim)).repeat_interleave(times, 0).flatten(0, 1)


def multi_head_source(source: Source, out: Path) -> Source:
    """The source with such a copy for its model, and a target that has as many key-value heads as heads."""
    if not out.is_dir():
        multi_head_copy(source.model, out)
    target = {name: size for name, size in source.target.items() if name != "num_key_value_heads"}
    return replace(source, model=str(out), title=f"{source.title}, multi-head", target=target)
