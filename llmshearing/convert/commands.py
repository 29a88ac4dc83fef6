"""The two conversions: a pruning checkpoint to its sheared model, a dense checkpoint to the same model."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmshearing.architecture.config import sheared_config
from llmshearing.convert.checkpoint import Checkpoint
from llmshearing.convert.choice import ALGORITHM, by_masks, by_scores
from llmshearing.convert.fetched import fetch_checkpoint
from llmshearing.convert.folder import as_json, folder_files, write_files
from llmshearing.convert.layout import select, shape_of_config
from llmshearing.convert.model_folder import ModelFolder
from llmshearing.convert.output import check_output, output_folder
from llmshearing.convert.sharded import Sharded
from llmshearing.convert.single_file import SingleFile
from llmshearing.convert.stored import StoredTensor
from llmshearing.convert.weight_files import DTYPES, Entry, write_shards
from llmshearing.copies import followed, local_copy
from llmshearing.data.start import order_of
from llmshearing.errors import InputError
from llmshearing.pruning.scores import Scores
from llmshearing.pruning.shear import Placement
from llmshearing.storage import is_remote

log = logging.getLogger(__name__)

_BYTES_IN_FLIGHT = 2_000_000  # of a tensor: stays in the processor's cache, and twice as fast as 8 MB here


@contextmanager
def open_checkpoint(path: str | Path) -> Iterator[Checkpoint]:
    """Open a checkpoint file (``ep0-ba100-rank0.pt``), the folder of a sharded one (``ep0-ba100``), or a model's.

    A link is followed once, so that what is read is of one checkpoint while training saves the next. Of an address
    what is read is copied to this machine first, see :mod:`~llmshearing.convert.fetched`.

    Raises:
        InputError: not a checkpoint, incomplete, or holding objects that would have to run code to be read.
    """
    if is_remote(path):
        with local_copy(followed(str(path)), fetching=fetch_checkpoint) as copy, open_checkpoint(copy) as checkpoint:
            yield checkpoint
        return
    try:
        found = Path(path).resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a character that no path has
        raise InputError(f"There is no checkpoint '{path}'.") from error
    with ExitStack() as held:
        if (found / "config.json").is_file():
            yield ModelFolder(found, held)
        else:
            yield Sharded(found, held) if found.is_dir() else SingleFile(found, held)


def shear(
    path: str | Path,
    out: str | Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
    scores: str | Path | None = None,
    target: Mapping[str, int] | None = None,
    fit: str | Path | None = None,
    fit_sequences: int = 64,
) -> None:
    """Shear a pruning checkpoint to a Hugging Face folder of exactly its target shape, or any model by its scores.

    Args:
        path: the Composer checkpoint, a file or a folder; with ``scores`` a dense one, or a Hugging Face folder.
        out: the folder to create.
        dtype: of the weights; that of the checkpoint if ``None``.
        max_shard_bytes: size of a safetensors file.
        overwrite: replace an existing ``out``.
        scores: what `python -m llmshearing.score` wrote of the model. ``None``: the checkpoint's masks choose.
        target: sizes by Hugging Face config name, where ``scores`` choose.
        fit: prepared data to fit the kept weights on, see :mod:`llmshearing.convert.fit`. ``None``: they are as they
            were.
        fit_sequences: how many sequences of it.

    Raises:
        InputError: the checkpoint is not one of pruning, or broken; ``out`` exists or cannot be written; data that
            does not fit.
    """
    if (scores is None) != (target is None):
        raise InputError("Scores and a target go together: give both --scores and --target, or neither.")
    place = check_output(out, overwrite=overwrite, source=path)
    with open_checkpoint(path) as checkpoint:
        config, tokenizer = checkpoint.huggingface()
        shears = by_masks(checkpoint, config) if scores is None else by_scores(checkpoint, config, scores, target or {})
        tensors = select(checkpoint.tensors, shears.source, path)
        placed = [
            (tensor, placement)
            for name, tensor in tensors.items()
            if (placement := shears.place(name, tensor.shape)) is not None
        ]
        entries = [_entry(tensor, placement, dtype, path) for tensor, placement in placed]
        record = {
            "format": 1,
            "source": shears.source.to_dict(),
            "target": shears.target.to_dict(),
            "kept": shears.describe(),
            **_data_record(checkpoint),
        }
        if scores is not None:
            record["scores"] = {"flops": Scores.load(scores).flops}
        cut = sheared_config(config, shears.target, shears.layers)
        files = folder_files(cut, tokenizer, entries[0].dtype, path, generation=checkpoint.generation())
        fitting = None
        if fit is not None:
            from llmshearing.convert.fit import fitted_entries, open_fit  # imports transformers, which takes seconds

            wide = [_entry(tensor, placement, torch.float32, path) for tensor, placement in placed]
            fitting = open_fit(tensors, wide, config, shears, data=fit, num_sequences=fit_sequences)
        with output_folder(place, overwrite=overwrite) as folder:
            if fitting is not None:
                write_shards(folder, fitted_entries(fitting, entries), max_shard_bytes=max_shard_bytes)
                record["fit"] = fitting.finish()
            if fitting is None or not record["fit"]["applied"]:
                write_shards(folder, entries, max_shard_bytes=max_shard_bytes)
            write_files(folder, {**files, "shearing.json": as_json(record, path)})
            checkpoint.check_unchanged()
    log.info("Sheared to %s, %d parameters: '%s'.", shears.target, shears.target.num_parameters(), place)


def export(
    path: str | Path,
    out: str | Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
) -> None:
    """Write a dense checkpoint as a Hugging Face folder. Arguments and errors as for :func:`shear`."""
    place = check_output(out, overwrite=overwrite, source=path)
    with open_checkpoint(path) as checkpoint:
        if checkpoint.algorithm(ALGORITHM) is not None:
            raise InputError(f"'{path}' is a pruning checkpoint, whose masks `export` would lose. Use `shear`.")
        config, tokenizer = checkpoint.huggingface()
        shape = shape_of_config(config, path)
        entries = [
            _entry(tensor, Placement(name, tensor.shape), dtype, path)
            for name, tensor in select(checkpoint.tensors, shape, path).items()
        ]
        files = folder_files(config, tokenizer, entries[0].dtype, path, generation=checkpoint.generation())
        with output_folder(place, overwrite=overwrite) as folder:
            write_shards(folder, entries, max_shard_bytes=max_shard_bytes)
            write_files(folder, files)
            checkpoint.check_unchanged()
    log.info("Exported %d tensors, %d parameters: '%s'.", len(entries), shape.num_parameters(), place)


def _entry(tensor: StoredTensor, placement: Placement, dtype: torch.dtype | None, path: str | Path) -> Entry:
    wanted = dtype or tensor.dtype
    if not tensor.dtype.is_floating_point or wanted not in DTYPES:
        raise InputError(f"'{tensor.name}' in '{path}' is of type {tensor.dtype}; weights must be floating point.")
    return Entry(placement.name, placement.shape, wanted, lambda: _convert(tensor, placement, wanted, path))


def _convert(tensor: StoredTensor, placement: Placement, dtype: torch.dtype, path: str | Path) -> Iterator[Tensor]:
    """What is written of a tensor, some rows at a time."""
    step = max(1, _BYTES_IN_FLIGHT // tensor.row_bytes)
    stop = 0
    for rows in tensor.parts(step):
        start, stop = stop, stop + (len(rows) if rows.dim() else 1)
        _check_finite(rows, f"'{tensor.name}' in '{path}' holds NaN or infinity. Take an earlier checkpoint.")
        wide = rows.to(torch.promote_types(rows.dtype, dtype))
        made = _part(placement, start, stop).cut(wide).to(dtype)
        if made.dtype != rows.dtype:
            _check_finite(made, f"'{tensor.name}' in '{path}' has values beyond {dtype}. Use bfloat16 or float32.")
        yield made


def _part(placement: Placement, start: int, stop: int) -> Placement:
    """What ``placement`` does to the rows from ``start`` to ``stop`` of the source tensor."""
    first, last = start, stop
    if placement.rows is not None:  # ascending
        first, last = torch.searchsorted(placement.rows, torch.tensor([start, stop])).tolist()
    return dataclasses.replace(
        placement,
        rows=None if placement.rows is None else placement.rows[first:last] - start,
        scale_rows=None if placement.scale_rows is None else placement.scale_rows[first:last],
    )


def _check_finite(tensor: Tensor, message: str) -> None:
    # The extremes of a tensor with NaN are NaN; asking isfinite of every value would take three passes and a copy.
    if tensor.numel() and not torch.isfinite(torch.stack(torch.aminmax(tensor))).all():
        raise InputError(message)


def _data_record(checkpoint: Checkpoint) -> dict[str, Any]:
    """What continued pre-training picks up from the data: final proportions and samples used per domain."""
    dataset = checkpoint.dataset()
    names = dataset.get("domains")
    if not names:
        return {"proportions": None, "samples_used": None}
    try:
        record: dict[str, Any] = {
            entry: dict(zip(names, map(_number, dataset[entry]), strict=True))
            for entry in ("proportions", "samples_used")
        }
        if (order := order_of(dataset)) is not None:
            record["order"] = order
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"The state of the data in '{checkpoint.path}' has a form that this version does not know."
        ) from error
    return record


def _number(value: Any) -> int | float:
    if not isinstance(value, (int, float)):
        raise TypeError(value)
    return value
