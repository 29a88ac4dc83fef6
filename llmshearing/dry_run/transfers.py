"""What each node downloads of training data, and the disk that it needs for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from streaming.base.util import bytes_to_int

from llmshearing.data.cache import DataBytes, is_remote
from llmshearing.data.dataset import DynamicStreamingDataset
from llmshearing.data.downloads import Downloads, downloads


class Transfers:
    """What nodes download of the training data.

    Args:
        train: the data.
        batches: of the run.
        nodes: how many.
    """

    def __init__(self, train: DynamicStreamingDataset, batches: float, *, nodes: int) -> None:
        self._train, self._nodes = train, nodes
        self._moved: tuple[Downloads, Downloads] | None = None  # what is fetched, and what stays on the disk
        if any(map(is_remote, train.streams)):
            measure = partial(_downloads, train, batches, nodes)
            fetched = measure(lambda shard, _: shard.get_zip_size() or shard.get_raw_size())
            self._moved = fetched, measure(lambda shard, keep_zip: shard.get_persistent_size(keep_zip))

    def lines(self) -> list[str]:
        """The report's lines on it; none where all data is local."""
        if self._moved is None:
            return []
        train, (fetched, kept) = self._train, self._moved
        limit = "" if train.cache_limit is None else f" (cache_limit: {_size(bytes_to_int(train.cache_limit))})"
        lines = [
            f"download    at most {_size(fetched.by_node.max())} to each of {self._nodes} nodes at the first round's "
            f"shares, {_size(kept.by_node.max())} on its disk{limit}: shards are downloaded "
            f"{fetched.amplification:.2f} times"
        ]
        lanes, sub_streams = train.rounds.at(train.rounds.start).lanes, train.sub_streams
        if self._nodes > lanes:
            remedy = f"raise train_loader.dataset.sub_streams ({sub_streams})"
            if lanes < sub_streams:
                remedy = (
                    "give each domain more shards, rounds more batches, or batches a multiple of sub_streams sequences"
                )
            lines += [f"download    the data is read in {lanes} parts, which several nodes download each: {remedy}"]
        return lines

    def of_node(self) -> DataBytes:
        """What the node that reads most downloads and has in its cache, and what is here already."""
        fetched, kept = (0, 0) if self._moved is None else (int(each.by_node.max()) for each in self._moved)
        return DataBytes(here=self._train.stored().here, fetched=fetched, cached=kept)


def _downloads(
    train: DynamicStreamingDataset, batches: float, nodes: int, size_of: Callable[[Any, bool], int]
) -> Downloads:
    plan = train.rounds.at(train.rounds.start)
    rounds = max(1, round(batches / train.update_interval))
    drawn = np.subtract(plan.following(rounds=rounds).used, plan.used)
    sizes = []
    for index, stream in enumerate(train.streams):
        size = size_of if is_remote(stream) else lambda *_: 0
        sizes.append(np.array([size(shard, stream.keep_zip) for shard in train.shards_of_domain(index)], np.int64))
    orders = train.order.orders
    return downloads(orders, sizes, plan.used, drawn.tolist(), lanes=plan.lanes, nodes=nodes)


def _size(number_of_bytes: float) -> str:
    return f"{number_of_bytes / 1e9:,.3g} GB"
