from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from llmshearing.data.prefetch import Prefetcher
from llmshearing.data.shards import ShardedDataset
from tests.data.helpers import open_dataset


@pytest.fixture
def dataset(data: Path, tmp_path: Path) -> ShardedDataset:
    return open_dataset(tmp_path / "cache", remote=str(data))


def local_shards(dataset: ShardedDataset) -> set[int]:
    return {int(shard) for shard in np.flatnonzero(dataset._shard_states.numpy() == 3)}


def wait_for(dataset: ShardedDataset, shards: set[int]) -> None:
    deadline = time.monotonic() + 20
    while local_shards(dataset) != shards and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)  # whatever else would be fetched
    assert local_shards(dataset) == shards


def test_fetches_so_far_ahead_and_no_further(dataset: ShardedDataset) -> None:
    ids = np.arange(0, 192, 8)  # two samples of each of the first 12 shards
    prefetcher = Prefetcher(dataset, ahead=6)
    samples = prefetcher.follow(ids, then=np.array([250, 260]))
    for taken in range(len(ids)):
        assert next(samples) == ids[taken]
        if taken in (0, 7, 12):
            wait_for(dataset, {int(shard) for shard in dataset.shards_of(ids[: taken + 7])})
    assert next(samples, None) is None
    wait_for(dataset, {*range(12), *dataset.shards_of(np.array([250, 260])).tolist()})
    prefetcher.stop()


def test_a_new_round_replaces_what_was_expected(dataset: ShardedDataset) -> None:
    prefetcher = Prefetcher(dataset, ahead=1)
    samples = prefetcher.follow(np.array([0]), then=np.array([0, 0, 16, 32]))
    next(samples)
    wait_for(dataset, {0})
    assert next(samples, None) is None
    next(prefetcher.follow(np.array([160]), then=np.array([], np.int64)))
    wait_for(dataset, {0, 10})
    prefetcher.stop()


def test_leaves_a_missing_shard_to_the_reader(data: Path, dataset: ShardedDataset, tmp_path: Path) -> None:
    (data / "code" / "shard.00001.mds").rename(tmp_path / "away")
    try:
        prefetcher = Prefetcher(dataset, ahead=50)
        next(prefetcher.follow(np.array([0, 16, 32]), then=np.array([], np.int64)))
        wait_for(dataset, {0, 2})
    finally:
        (tmp_path / "away").rename(data / "code" / "shard.00001.mds")
    assert dataset.get_item(16)["input_ids"][:3].tolist() == [
        0,
        0,
        16,
    ]  # domain and number, from the shard that is back
    prefetcher.stop()
