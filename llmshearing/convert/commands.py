"""The two conversions: a pruning checkpoint to its sheared model, a dense checkpoint to the same model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmshearing.convert.checkpoint import Checkpoint
from llmshearing.convert.folder import sheared_config, write_config, write_tokenizer
from llmshearing.convert.safetensors import Entry, write_shards
from llmshearing.errors import InputError
from llmshearing.fileio import new_folder, write_json
from llmshearing.pruning.hard_concrete import deterministic
from llmshearing.pruning.shear import Placement, Shears
from llmshearing.pruning.target import unit_groups
from llmshearing.shape import ModelShape

log = logging.getLogger(__name__)

_ALGORITHM = "TargetedPruning"


def shear(
    path: str | Path,
    out: str | Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
) -> None:
    """Shear a pruning checkpoint to a Hugging Face folder of exactly its target shape.

    Args:
        path: the Composer checkpoint.
        out: the folder to create.
        dtype: of the weights; that of the checkpoint if ``None``.
        max_shard_bytes: size of a safetensors file.
        overwrite: replace an existing ``out``.

    Raises:
        InputError: the checkpoint is not one of pruning, or broken; ``out`` exists.
    """
    checkpoint = Checkpoint(path)
    pruning = checkpoint.algorithm(_ALGORITHM)
    if pruning is None:
        raise InputError(f"'{path}' holds no masks: it is not a pruning checkpoint. Use `export` for a dense model.")
    source, target = ModelShape.from_dict(pruning["source"]), ModelShape.from_dict(pruning["target"])
    log_alpha = {name: checkpoint.read(tensor) for name, tensor in pruning["masks"]["log_alpha"].items()}
    kept = {group.dimension: group.num_kept for group in unit_groups(source, target)}
    if missing := kept.keys() - log_alpha.keys():
        raise InputError(f"'{path}' has no masks for {', '.join(sorted(missing))}.")
    masks = {name: deterministic(log_alpha[name], num_kept) for name, num_kept in kept.items()}
    shears = Shears(masks, source, target)

    def entry(name: str, tensor: Tensor) -> Entry | None:
        placement = shears.place(name, tensor.shape)
        return None if placement is None else _entry(checkpoint, placement, tensor, dtype)

    config, tokenizer = checkpoint.huggingface()
    names = [name for name in checkpoint.tensors if not (source.tie_word_embeddings and name == "lm_head.weight")]
    entries = [made for name in names if (made := entry(name, checkpoint.tensors[name])) is not None]
    _check_complete(entries, target, path)
    record = {
        "format": 1,
        "source": source.to_dict(),
        "target": target.to_dict(),
        "kept": shears.describe(),
        **_data_record(checkpoint),
    }
    with new_folder(out, overwrite=overwrite) as folder:
        write_shards(folder, entries, max_shard_bytes=max_shard_bytes)
        write_config(folder, sheared_config(config, target, shears.layers), entries[0].dtype)
        write_tokenizer(folder, tokenizer)
        write_json(folder / "shearing.json", record)
    log.info("Sheared to %s, %d parameters: '%s'.", target, target.num_parameters(), out)


def export(
    path: str | Path,
    out: str | Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
) -> None:
    """Write a dense checkpoint as a Hugging Face folder. Arguments and errors as for :func:`shear`."""
    checkpoint = Checkpoint(path)
    if checkpoint.algorithm(_ALGORITHM) is not None:
        raise InputError(f"'{path}' is a pruning checkpoint, whose masks `export` would lose. Use `shear`.")
    config, tokenizer = checkpoint.huggingface()
    tied = bool(config.get("tie_word_embeddings"))

    def entry(name: str, tensor: Tensor) -> Entry:
        return _entry(checkpoint, Placement(name, tuple(tensor.shape), None, None, None, None), tensor, dtype)

    entries = [
        entry(name, tensor) for name, tensor in checkpoint.tensors.items() if not (tied and name == "lm_head.weight")
    ]
    with new_folder(out, overwrite=overwrite) as folder:
        write_shards(folder, entries, max_shard_bytes=max_shard_bytes)
        write_config(folder, config, entries[0].dtype)
        write_tokenizer(folder, tokenizer)
    log.info("Exported %d tensors: '%s'.", len(entries), out)


def _entry(checkpoint: Checkpoint, placement: Placement, tensor: Tensor, dtype: torch.dtype | None) -> Entry:
    wanted = dtype or tensor.dtype
    return Entry(placement.name, placement.shape, wanted, lambda: placement.cut(checkpoint.read(tensor)).to(wanted))


def _check_complete(entries: list[Entry], target: ModelShape, path: str | Path) -> None:
    found = sum(torch.Size(entry.shape).numel() for entry in entries)
    if found != target.num_parameters():
        raise InputError(
            f"'{path}' gives {found} parameters for a target of {target.num_parameters()}: "
            "tensors are missing or foreign."
        )


def _data_record(checkpoint: Checkpoint) -> dict[str, Any]:
    """What continued pre-training picks up from the data: final proportions and samples used per domain."""
    dataset = (checkpoint.state.get("dataset_state") or {}).get("train") or {}
    names = dataset.get("domains")
    return {
        entry: dict(zip(names, dataset[entry], strict=True)) if names else None
        for entry in ("proportions", "samples_used")
    }
