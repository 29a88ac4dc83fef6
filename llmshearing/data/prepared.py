"""A split of prepared data as a whole: which domains it has, and their sequences in batches."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import torch
from streaming.base.storage import CloudDownloader

from llmshearing.data.arguments import opens
from llmshearing.data.domain import DomainDataset
from llmshearing.errors import InputError
from llmshearing.fileio import read_json

MANIFEST = "manifest.json"


def open_split(
    data: str | Path,
    split: str,
    *,
    cache: str | Path | None = None,
    vocab_size: int | None = None,
    lazy: bool = False,
) -> dict[str, DomainDataset]:
    """Every domain of a split, by name and in the order of names.

    Args:
        data: what ``data_prep/prepare.py`` wrote, as a folder or the URL of a copy of it; of a folder also the split
            itself, which any folder of MDS folders can be.
        split: ``train`` or ``eval``.
        cache: folder that data is fetched to from where it is. ``None``: a folder is read where it lies.
        vocab_size: token ids must be below it. ``None``: not checked.
        lazy: of an address, fetch only the shards of the sequences that are read; without ``cache`` to a temporary
            folder, which goes with the process.

    Raises:
        InputError: there is no domain, or one cannot be read.
    """
    if cache is not None or "://" in str(data):
        return _open_remote(str(data), split, cache, vocab_size, lazy)
    root = Path(data)
    root = root / split if (root / split).is_dir() else root
    folders = {index.parent.name: index.parent for index in sorted(root.glob("*/index.json"))}
    if not folders:
        raise InputError(
            f"'{root}' holds no prepared domain (no <domain>/index.json). "
            f"Give the output folder of data_prep/prepare.py, or its {split} folder."
        )
    return {domain: DomainDataset(domain, str(folder), vocab_size=vocab_size) for domain, folder in folders.items()}


def _open_remote(
    url: str, split: str, cache: str | Path | None, vocab_size: int | None, lazy: bool
) -> dict[str, DomainDataset]:
    if cache is None and lazy:
        cache = tempfile.mkdtemp(prefix="llmshearing-")
        weakref.finalize(sys.modules[__name__], shutil.rmtree, cache, ignore_errors=True)  # also where a process exits
    if cache is None:
        raise InputError(f"'{url}' is not on this machine. Give --cache FOLDER for what is fetched from there.")
    root = url.rstrip("/")
    # Each rank fetches one for itself.
    with opens(f"{root}/{MANIFEST}, which data_prep/prepare.py wrote"), tempfile.TemporaryDirectory() as folder:
        manifest = os.path.join(folder, MANIFEST)
        CloudDownloader.direct_download(f"{root}/{MANIFEST}", manifest)
        domains = sorted(read_json(manifest)["domains"])
    return {
        domain: DomainDataset(
            domain,
            os.path.join(cache, split, domain),
            remote=f"{root}/{split}/{domain}",
            vocab_size=vocab_size,
            lazy=lazy,
        )
        for domain in domains
    }


def batches(dataset: DomainDataset, batch_size: int) -> Iterator[torch.Tensor]:
    """Every sequence once and in order, as int64 (up to batch_size, sequence length)."""
    for start in range(0, len(dataset), batch_size):
        rows = range(start, min(start + batch_size, len(dataset)))
        yield torch.stack([dataset[row]["input_ids"] for row in rows])


def rows_in_turns(data: str | Path, number: int, *, vocab_size: int, longest: int) -> torch.Tensor:
    """What :func:`in_turns` gives, as one tensor (sequences, length).

    Raises:
        InputError: as there; or there is none, or they are of several lengths.
    """
    taken = list(in_turns(data, number, vocab_size=vocab_size, longest=longest))
    if not taken:
        raise InputError(f"'{data}' holds no sequences. Prepare the data again.")
    if len({ids.shape[1] for ids in taken}) > 1:
        raise InputError(f"'{data}' holds sequences of several lengths. Prepare every domain with one --seq-len.")
    return torch.cat(taken)


def in_turns(data: str | Path, number: int, *, vocab_size: int, longest: int) -> Iterator[torch.Tensor]:
    """Sequences of every domain in turn, one at a time, (1, length), for calibration.

    They lie as far from each other as they can: neighbours are often of one document, and say little more than one.

    Args:
        data: as for :func:`open_split`, whose train split is read.
        number: how many at most.
        vocab_size: token ids must be below it.
        longest: tokens that the model takes.

    Raises:
        InputError: the data cannot be read, or its sequences are longer, or of less than two tokens.
    """
    domains = open_split(data, "train", vocab_size=vocab_size, lazy=True)
    number = min(number, sys.maxsize)
    each = -(-number // len(domains))
    turns = itertools.chain.from_iterable(itertools.zip_longest(*(spread(d, each) for d in domains.values())))
    for ids in itertools.islice((ids for ids in turns if ids is not None), number):
        if not 2 <= ids.shape[1] <= longest:
            raise InputError(
                f"'{data}' holds sequences of {ids.shape[1]} tokens, but the model takes 2 to {longest}. Prepare the "
                f"data with --seq-len {longest}."
            )
        yield ids


def spread(dataset: DomainDataset, number: int) -> Iterator[torch.Tensor]:
    """That many sequences, or all there are, at equal distances."""
    length = len(dataset)
    number = min(number, length)
    return (dataset[(2 * place + 1) * length // (2 * number)]["input_ids"].unsqueeze(0) for place in range(number))
