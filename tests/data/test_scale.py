"""What opening and planning cost when there are 10^9 samples."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.streaming_speed import write_index
from tests.data.helpers import open_dataset

SHARDS = 500


def traced(work: Callable[[], Any]) -> tuple[int, Any]:
    """Peak of memory in bytes, and the result."""
    tracemalloc.start()
    result = work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, result


def test_memory_is_that_of_the_shard_index(tmp_path: Path) -> None:
    peaks = {}
    for samples in (10**6, 10**9):
        folder = tmp_path / str(samples)
        write_index(folder / "web", shards=SHARDS, samples=samples)
        settings = {
            "proportions": {"web": 1.0},
            "update_interval": 100,
            "batch_size": 32,
            "shuffle_block_size": 1 << 18,
        }
        opened, dataset = traced(lambda: open_dataset(folder, **settings))  # noqa: B023 (called at once)
        planned, ids = traced(lambda: dataset._sample_ids(dataset.rounds._newest, np.arange(3200)))  # noqa: B023
        assert dataset.num_samples == samples
        assert len(np.unique(ids)) == 3200
        peaks[samples] = opened, planned
    assert peaks[10**9][0] < 1.05 * peaks[10**6][0] < 3_000_000
    assert peaks[10**9][1] < 1.05 * peaks[10**6][1] + 10_000 < 2_000_000


@pytest.mark.parametrize("sub_streams", [1, 16])
def test_a_round_touches_the_shards_of_few_blocks(tmp_path: Path, sub_streams: int) -> None:
    write_index(tmp_path / "web", shards=SHARDS, samples=10**9)  # 2,000,000 per shard: a block is one shard
    sizes = {"shuffle_block_size": 1 << 18, "update_interval": 1000, "sub_streams": sub_streams}
    dataset = open_dataset(tmp_path, proportions={"web": 1.0}, **sizes)
    shards = dataset.shards_of(dataset._sample_ids(dataset.rounds._newest, np.arange(4000)))
    assert len(np.unique(shards)) == sub_streams
