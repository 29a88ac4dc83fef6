"""Small prepared data whose every sample says where it comes from, and what reads it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from streaming import MDSWriter

from llmshearing.data.dataset import DynamicStreamingDataset
from llmshearing.data.loaders import DynamicDataLoader

SEQ_LEN = 8
BATCH = 4

Numbers = list[tuple[int, int]]  # (domain, sample number) of each row of a batch


def write_domain(
    folder: Path, domain: int, samples: int, *, per_shard: int = 16, compression: str | None = None
) -> Path:
    """Write ``samples`` rows that begin with (domain, high digit, low digit of the sample's number, base 256)."""
    with MDSWriter(
        out=str(folder),
        columns={"tokens": f"ndarray:uint16:{SEQ_LEN}"},
        hashes=["xxh64"],
        compression=compression,
        size_limit=per_shard * (2 * SEQ_LEN + 4) + 200,
    ) as writer:
        for number in range(samples):
            row = np.random.default_rng((domain, number)).integers(0, 256, SEQ_LEN)
            row[:3] = domain, *divmod(number, 256)
            writer.write({"tokens": row.astype(np.uint16)})
    return folder


def numbers(batch: Mapping[str, Any]) -> Numbers:
    """Which samples of :func:`write_domain` a batch holds."""
    return [(int(row[0]), int(row[1]) * 256 + int(row[2])) for row in batch["input_ids"]]


def open_dataset(root: Path, **settings: Any) -> DynamicStreamingDataset:
    """A dataset over :func:`data`, in rounds of 4 batches of 4 samples."""
    defaults: dict[str, Any] = {
        "local": str(root),
        "proportions": {"code": 0.5, "web": 0.3, "books": 0.2},
        "update_interval": 4,
        "batch_size": BATCH,
        "shuffle_block_size": 40,
    }
    return DynamicStreamingDataset(**{**defaults, **settings})


def mixes() -> Iterator[list[float]]:
    """Proportions for one round after another, each different."""
    rng = np.random.default_rng(7)
    while True:
        yield rng.dirichlet([3.0, 2.0, 1.0]).tolist()


def train(
    dataset: DynamicStreamingDataset, batches: int, *, after: Iterable[Sequence[float]] = (), **loader: Any
) -> list[Numbers]:
    """Take ``batches`` batches; at the end of each round set the next of ``after``, as the callback would.

    Returns:
        What each batch holds.
    """
    after = iter(after)
    taken: list[Numbers] = []
    sample = dataset.rounds.start
    for batch in DynamicDataLoader(dataset, batch_size=dataset.batch_size, **loader):
        taken.append(numbers(batch))
        sample += dataset.global_batch_size
        if sample == dataset.rounds._newest.end and not dataset.rounds._newest.held:
            dataset.rounds.update(next(after))
        if len(taken) == batches:
            break
    return taken


def shared_memory_of(root: Path) -> list[str]:
    """Prefixes of the shared memory that datasets over folders below ``root`` hold on this host."""
    found = []
    for entry in os.scandir("/dev/shm"):
        if entry.name.endswith("_locals"):
            try:
                content = Path(entry.path).read_bytes()
            except OSError:
                continue  # another run's, gone or not ours
            if str(root).encode() in content:
                found.append(entry.name.removesuffix("_locals"))
    return found
