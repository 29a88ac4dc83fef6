"""Which shards nodes read of orders made of sub-streams, and that the samples are the same for any number of nodes."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from numpy.typing import NDArray

from llmshearing.data.carry import UNIT
from llmshearing.data.downloads import downloads, shards_of_lane
from llmshearing.data.permutation import DomainOrder, derive_key, permute, reversed_bits
from llmshearing.data.plan import RoundPlan
from llmshearing.data.streams import Streams

# A hundredth of RedPajama-1T in shards of 64 MB, at the proportions of the paper's prompt for LLaMA2.
SHARDS = {"cc": 2000, "c4": 500, "github": 150, "book": 75, "wiki": 75, "arxiv": 80, "se": 60}
SHARES = np.array([0.67, 0.15, 0.045, 0.045, 0.045, 0.025, 0.02])
PER_SHARD, BATCH, INTERVAL, BLOCK = 8180, 256, 400, 1 << 18


def orders_of(sub_streams: int) -> list[DomainOrder]:
    return [
        DomainOrder([PER_SHARD] * n, key=derive_key(9176, "domain", name), block_size=BLOCK, sub_streams=sub_streams)
        for name, n in SHARDS.items()
    ]


def plan_of(**fields: object) -> RoundPlan:
    given = {"number": 0, "begin": 0, "used": (0,) * 7, "seed": 9176, "proportions": (SHARES / SHARES.sum()).tolist()}
    given |= {"size": INTERVAL * BATCH, "batch_size": BATCH, "sub_streams": 16}
    given["proportions"] = tuple(given["proportions"])  # type: ignore[arg-type]
    return RoundPlan(**{**given, **fields})  # type: ignore[arg-type]


def shards_read(plan: RoundPlan, orders: list[DomainOrder]) -> NDArray[np.int64]:
    """The shard of each place of a round, numbered through all domains, (size,)."""
    domains, positions = plan.layout
    firsts = np.cumsum([0, *SHARDS.values()])
    shards = np.empty(len(domains), np.int64)
    for index, order in enumerate(orders):
        shards[domains == index] = firsts[index] + order.sample_ids(positions[domains == index]) // PER_SHARD
    return shards


def by_node(shards: NDArray[np.int64], nodes: int) -> list[int]:
    rows = shards.reshape(-1, nodes, BATCH // nodes)
    return [len(np.unique(rows[:, node])) for node in range(nodes)]


def test_nodes_download_hardly_more_than_their_share() -> None:
    split, whole = shards_read(plan_of(), orders_of(16)), shards_read(plan_of(sub_streams=1), orders_of(1))
    found = {nodes: sum(by_node(split, nodes)) / len(np.unique(split)) for nodes in (1, 2, 4, 16)}
    before = {nodes: sum(by_node(whole, nodes)) / len(np.unique(whole)) for nodes in (1, 2, 4, 16)}
    assert {nodes: round(times, 2) for nodes, times in found.items()} == {1: 1.0, 2: 1.0, 4: 1.0, 16: 1.0}
    assert {nodes: round(times, 2) for nodes, times in before.items()} == {1: 1.0, 2: 2.0, 4: 4.0, 16: 15.91}
    sizes = [np.ones(count, np.int64) for count in SHARDS.values()]
    for nodes in (1, 2, 4, 16):
        told = downloads(orders_of(16), sizes, (0,) * 7, plan_of().counts.tolist(), lanes=16, nodes=nodes)
        assert told.by_node.tolist() == by_node(split, nodes)


def test_over_a_whole_run_with_passes_nodes_download_at_most_1_2_times_the_data() -> None:
    orders, sizes = orders_of(16), [np.ones(count, np.int64) for count in SHARDS.values()]
    drawn = plan_of().following(rounds=240).used  # 24.6 M samples of 24 M, so that small domains are in a second pass
    times = {n: downloads(orders, sizes, (0,) * 7, drawn, lanes=16, nodes=n).amplification for n in (1, 2, 4, 8, 16)}
    assert times[1] == 1
    assert max(times.values()) < 1.2, times
    assert downloads(orders, sizes, (0,) * 7, drawn, lanes=16, nodes=64).amplification > 3.9  # more than sub-streams


def test_a_nodes_first_batch_needs_few_shards() -> None:
    first = shards_read(plan_of(), orders_of(16))[:BATCH].reshape(16, -1)
    firsts = np.cumsum([0, *SHARDS.values()])
    for node in first:
        assert np.histogram(np.unique(node), firsts)[0].max() <= 3  # of each domain


def test_neighbours_open_shards_at_different_times() -> None:
    order = orders_of(16)[0]
    opened = []
    for lane in range(16):
        shards = order.sample_ids(np.arange(16 * 40_000)[reversed_bits(16)[lane] :: 16]) // PER_SHARD
        opened.append(sorted(np.unique(shards, return_index=True)[1].tolist()))
    later = [next(place for place in places if place > 100) for places in opened]  # the first of the second block
    assert len({place // 500 for place in later}) > 10


def test_what_nodes_read_is_known_beforehand() -> None:
    rng = np.random.default_rng(0)
    for trial in range(30):
        sizes = rng.integers(0, 600, int(rng.integers(2, 40)))
        sizes[0] = 2048
        order = DomainOrder(sizes, key=trial, block_size=int(rng.integers(1, 4000)), sub_streams=16)
        begin = int(rng.integers(0, 2 * order.num_samples))
        positions = np.arange(begin, begin + int(rng.integers(1, 2 * order.num_samples)))
        shards = np.searchsorted(np.cumsum(sizes), order.sample_ids(positions), side="right")
        lanes = int(2 ** rng.integers(0, 5))
        for lane in range(lanes):
            mine = positions % lanes == reversed_bits(lanes)[lane]
            told = shards_of_lane(order, begin, int(positions[-1]) + 1, lane, lanes).nonzero()[0]
            assert set(shards[mine]) <= set(told.tolist())


@pytest.mark.parametrize("sub_streams", [1, 2, 16, 64])
def test_each_pass_holds_each_sample_once(sub_streams: int) -> None:
    rng = np.random.default_rng(sub_streams)
    for trial in range(8):
        sizes = rng.integers(0, 5000, int(rng.integers(1, 40)))
        sizes[0] += 1
        order = DomainOrder(sizes, key=trial, block_size=int(rng.integers(1, 60_000)), sub_streams=sub_streams)
        n = order.num_samples
        stream = order.sample_ids(np.arange(3 * n))
        assert (np.sort(stream.reshape(3, n), axis=1) == np.arange(n)).all()
        some = rng.integers(0, 3 * n, 100)
        assert np.array_equal(order.sample_ids(some), stream[some])
        assert order.sub_streams <= max(1, min(sub_streams, n // 1024, np.count_nonzero(sizes)))


def crc(values: NDArray[np.int64]) -> int:
    return zlib.crc32(np.ascontiguousarray(values, np.int64).tobytes())


def test_one_sub_stream_is_the_order_of_earlier_versions() -> None:
    """Numbers worked out by the version before sub-streams."""
    small = DomainOrder([5, 0, 7, 3, 1, 9, 4, 11, 2], key=1, block_size=10, sub_streams=16)  # too small to be cut
    assert crc(small.sample_ids(np.arange(200))) == 1436924260
    assert small.sample_ids(np.arange(40, 52)).tolist() == [13, 12, 24, 38, 16, 31, 23, 18, 22, 19, 17, 29]
    large = DomainOrder([8180] * 75 + [123], key=7, block_size=1 << 18)
    assert crc(large.sample_ids(np.arange(1_300_000))) == 1293133075
    assert crc(permute(np.arange(100_000), 100_000, 9)) == 3394190046
    owed = (5 << 40, -(5 << 40), 1 << 45, -(1 << 45), 0, 0, 0)
    shares, used = (0.67, 0.15, 0.09, 0.0297, 0.03, 0.03, 0.0003), (3000, 700, 440, 150, 150, 150, 2)
    plan = RoundPlan(3, 4800, 1600, shares, used, seed=9176, owed=owed)
    assert [crc(part) for part in plan.layout] == [1481287774, 3754558430]
    assert plan.following().used == (4073, 940, 584, 197, 198, 198, 2)
    assert plan.following().owed[::3] == (-275977418571008, 111182615799936, 135107988820800)
    assert plan.following(rounds=1000).used == (1075000, 240700, 144440, 47670, 48150, 48150, 482)


def test_a_round_takes_the_next_samples_of_each_domain_and_lanes_as_many_each() -> None:
    for used in ((0,) * 7, (3, 1, 4, 1, 5, 9, 2)):
        plan = plan_of(used=used)
        domains, positions = plan.layout
        lanes = np.arange(plan.size) % BATCH // (BATCH // 16)
        assert np.array_equal(reversed_bits(16)[lanes], positions % 16)
        for index in range(7):
            mine = np.sort(positions[domains == index])
            assert np.array_equal(mine, used[index] + np.arange(plan.counts[index]))
            assert len(set(np.bincount(lanes[domains == index], minlength=16))) == 1


def test_shares_are_exact_over_the_rounds_and_exact_in_small_ones() -> None:
    plan, shares = plan_of(), SHARES / SHARES.sum()
    for number in range(1, 60):
        assert (plan.counts % 16 == 0).all()
        assert plan.counts.sum() == plan.size
        plan = plan.following()
        assert (np.abs(np.array(plan.used) - number * plan.size * shares) < 16 * (1 + 7 * shares)).all()
        assert sum(plan.owed) == 0
        assert (np.abs(plan.owed) < 80 * UNIT).all()
    small = plan_of(size=BATCH // 16, batch_size=16)
    assert small.lanes == 1
    assert small.counts.tolist() == plan_of(size=16, batch_size=16, sub_streams=1).counts.tolist()
    assert [plan_of(size=size, batch_size=32).lanes for size in (32, 96, 1600)] == [1, 2, 16]


def test_batches_are_as_even_as_with_one_lane() -> None:
    def spread(sub_streams: int) -> NDArray[np.float64]:
        domains, _ = plan_of(sub_streams=sub_streams).layout
        counts = np.array([np.bincount(batch, minlength=7) for batch in domains.reshape(INTERVAL, BATCH)])
        return np.asarray(counts.std(axis=0))

    ratio = spread(16) / spread(1)
    assert (ratio > 0.85).all()
    assert (ratio < 1.15).all()


def test_streams_of_many_domains_are_those_of_each() -> None:
    names = [f"d{number}" for number in range(60)]
    streams = Streams(names, [np.array([900, 1300])] * 60, seed=3, block_size=4096, sub_streams=16)
    plan = RoundPlan(0, 0, 38_400, (1 / 60,) * 60, (2100,) * 60, seed=3, batch_size=64, sub_streams=2)
    places = np.random.default_rng(0).permutation(plan.size)[:5000]
    domains, positions = (part[places] for part in plan.layout)
    ids = streams.sample_ids(plan, places)
    for index in (0, 31, 59):
        mine = domains == index
        assert np.array_equal(ids[mine], 2200 * index + streams.orders[index].sample_ids(positions[mine]))
    assert len(streams.sample_ids(plan, places[:0])) == 0
