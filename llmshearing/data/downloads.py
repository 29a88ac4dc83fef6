"""Which shards each node reads: what it downloads where ``remote`` is set, known from the plan alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmshearing.data.permutation import DomainOrder, reversed_bits


@dataclass(frozen=True)
class Downloads:
    """Bytes.

    Args:
        by_node: what each node reads, (nodes,).
        distinct: what they read together.
    """

    by_node: NDArray[np.int64]
    distinct: int

    @property
    def amplification(self) -> float:
        """How often a shard is downloaded, on average over bytes."""
        return float(self.by_node.sum() / max(1, self.distinct))


def downloads(
    orders: Sequence[DomainOrder],
    shard_bytes: Sequence[NDArray[np.int64]],
    used: Sequence[int],
    drawn: Sequence[int],
    *,
    lanes: int,
    nodes: int,
) -> Downloads:
    """What a run downloads whose nodes own as many rows of every global batch each.

    Args:
        orders: of each domain.
        shard_bytes: bytes of each domain's shards, (shards,) each.
        used: samples of each domain used before the run, (domains,).
        drawn: samples of each domain in the run, (domains,).
        lanes: see ``plan.py``.
        nodes: how many.
    """
    edges = np.arange(nodes + 1) * lanes / nodes
    first, last = np.floor(edges[:-1]).astype(int), np.ceil(edges[1:]).astype(int)
    by_node, distinct = np.zeros(nodes, np.int64), 0
    for order, sizes, begin, count in zip(orders, shard_bytes, used, drawn, strict=True):
        read = np.array([shards_of_lane(order, begin, begin + count, lane, lanes) for lane in range(lanes)])
        for node in range(nodes):
            by_node[node] += sizes[read[first[node] : last[node]].any(axis=0)].sum()
        distinct += int(sizes[read.any(axis=0)].sum())
    return Downloads(by_node, distinct)


def shards_of_lane(order: DomainOrder, begin: int, end: int, lane: int, lanes: int) -> NDArray[np.bool_]:
    """The shards of the blocks from which a lane takes its positions from ``begin`` to ``end``, (shards,).

    Where several lanes share a sub-stream it may say a block too many at both ends.
    """
    found = np.zeros(len(order.samples_per_shard), bool)
    size, streams = order.num_samples, order.sub_streams
    for number in range(begin // size, -(-end // size)):
        if found.all():
            break
        places = np.arange(max(streams, lanes)) + number * size
        of_lane = (places % lanes == reversed_bits(lanes)[lane]).nonzero()[0]
        within = max(0, begin - number * size), min(size, end - number * size)
        for residue in np.unique(of_lane % streams).tolist():
            found |= order.shards_of_sub_stream(number, residue, *within)
    return found
