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


def download_lines(train: DynamicStreamingDataset, batches: float, *, nodes: int) -> list[str]:
    """The report's lines on it for so many batches; none where all data is local."""
    if not any(map(is_remote, train.streams)):
        return []
    fetched, kept = _transfers(train, batches, nodes)
    limit = "" if train.cache_limit is None else f" (cache_limit: {_size(bytes_to_int(train.cache_limit))})"
    lines = [
        f"download    at most {_size(fetched.by_node.max())} to each of {nodes} nodes at the first round's shares, "
        f"{_size(kept.by_node.max())} on its disk{limit}: shards are downloaded {fetched.amplification:.2f} times"
    ]
    lanes, sub_streams = train.rounds.at(train.rounds.start).lanes, train.sub_streams
    if nodes > lanes:
        remedy = f"raise train_loader.dataset.sub_streams ({sub_streams})"
        if lanes < sub_streams:
            remedy = "give each domain more shards, rounds more batches, or batches a multiple of sub_streams sequences"
        lines += [f"download    the data is read in {lanes} parts, which several nodes download each: {remedy}"]
    return lines


def bytes_of_node(train: DynamicStreamingDataset, batches: float, *, nodes: int) -> DataBytes:
    """What the node that reads most downloads of the training data and has in its cache, and what is here already."""
    here = train.stored().here
    if not any(map(is_remote, train.streams)):
        return DataBytes(here=here)
    fetched, kept = _transfers(train, batches, nodes)
    return DataBytes(here=here, fetched=int(fetched.by_node.max()), cached=int(kept.by_node.max()))


def _transfers(train: DynamicStreamingDataset, batches: float, nodes: int) -> tuple[Downloads, Downloads]:
    measure = partial(_downloads, train, batches, nodes)
    fetched = measure(lambda shard, _: shard.get_zip_size() or shard.get_raw_size())
    return fetched, measure(lambda shard, keep_zip: shard.get_persistent_size(keep_zip))


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
