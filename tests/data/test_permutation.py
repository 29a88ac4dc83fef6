from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray

from llmshearing.data.permutation import DomainOrder, derive_key, permute

SIZES = [*range(1, 70), 255, 256, 257, 1000, 4097, 65536]


def z_score(counts: NDArray[np.float64], degrees: int) -> float:
    """How many standard deviations a chi-square statistic of equally likely cells is above its mean."""
    expected = counts.mean()
    return float((((counts - expected) ** 2 / expected).sum() - degrees) / np.sqrt(2 * degrees))


@pytest.mark.parametrize("key", [0, 1, 2**64 - 1])
def test_permutes_every_range(key: int) -> None:
    for n in SIZES:
        assert np.array_equal(np.sort(permute(np.arange(n), n, key)), np.arange(n)), n


def test_any_part_of_a_permutation_agrees_with_the_whole() -> None:
    whole = permute(np.arange(5000), 5000, 3)
    some = np.random.default_rng(0).integers(0, 5000, (7, 11))
    assert np.array_equal(permute(some, 5000, 3), whole[some])


def test_ranges_of_10_to_the_12() -> None:
    images = permute(np.arange(10**5), 10**12, 5)
    assert len(np.unique(images)) == 10**5
    assert images.min() >= 0
    assert images.max() < 10**12
    assert abs(images.mean() / 10**12 - 0.5) < 0.005


@pytest.mark.parametrize("n", [2, 3, 5, 8, 13, 40])
def test_every_place_is_equally_likely(n: int) -> None:
    places, pairs = np.zeros((n, n)), np.zeros((n, n))
    for number in range(2000):
        images = permute(np.arange(n), n, derive_key("test", number))
        places[np.arange(n), images] += 1
        pairs[images[0], images[1]] += 1
    assert z_score(places, (n - 1) ** 2) < 5
    assert z_score(pairs[~np.eye(n, dtype=bool)], n * (n - 1) - 1) < 5


def test_neighbours_are_not_related() -> None:
    images = permute(np.arange(100_000), 100_000, 9).astype(float)
    assert abs(np.corrcoef(images[:-1], images[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(images, permute(np.arange(100_000), 100_000, 10))[0, 1]) < 0.02


def test_keys_do_not_depend_on_the_process() -> None:
    assert derive_key(1, "domain", "web") == 0x376538A7F948A914
    assert derive_key(1, "domain", "web") != derive_key(1, "domain", "code")


SHARDS = [5, 0, 7, 3, 1, 9, 4, 11, 2]


def test_each_pass_holds_each_sample_once() -> None:
    order = DomainOrder(SHARDS, key=1, block_size=10)
    total = sum(SHARDS)
    stream = order.sample_ids(np.arange(5 * total)).reshape(5, total)
    assert (np.sort(stream, axis=1) == np.arange(total)).all()
    assert len({tuple(row) for row in stream.tolist()}) == 5


def test_slices_and_single_places_agree_with_the_stream() -> None:
    order = DomainOrder(SHARDS, key=1, block_size=10)
    stream = order.sample_ids(np.arange(100))
    assert np.array_equal(DomainOrder(SHARDS, key=1, block_size=10).sample_ids(np.arange(37, 90)), stream[37:90])
    shuffled = np.random.default_rng(0).permutation(100)
    assert np.array_equal(order.sample_ids(shuffled), stream[shuffled])


def test_a_block_is_whole_shards_shuffled_together() -> None:
    sizes = np.full(100, 50)
    stream = DomainOrder(sizes, key=4, block_size=500).sample_ids(np.arange(5000))
    shards = stream // 50
    for block in shards.reshape(10, 500):
        assert len(np.unique(block)) == 10
        assert len(np.unique(block[:50])) > 5  # mixed, not one shard after another
    assert not np.array_equal(np.sort(np.unique(shards[:500])), np.arange(10))  # nor neighbours on disk


def test_a_block_per_shard_when_blocks_are_small() -> None:
    shards = DomainOrder([50] * 20, key=4, block_size=1).sample_ids(np.arange(1000)) // 50
    assert (shards.reshape(20, 50) == shards.reshape(20, 50)[:, :1]).all()


def test_memory_does_not_grow_with_the_samples() -> None:
    def peak(samples_per_shard: int) -> int:
        tracemalloc.start()
        order = DomainOrder([samples_per_shard] * 1000, key=1, block_size=1 << 18)
        order.sample_ids(np.arange(10_000))
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(1_000_000) < 1.1 * peak(1_000) < 10_000_000
