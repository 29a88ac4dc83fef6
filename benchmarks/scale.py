"""``python -m benchmarks.scale``: what planning the data of a very long run on many nodes costs, without any tokens.

The plans, orders and states are the real ones; there is only nothing to read. By default 10^9 samples of 4096 tokens in
the mix of the paper, on 512 ranks of 64 nodes: how long a plan and a worker's samples take at a round's edge, how large
a checkpoint's state of the data is, what a restart in the middle costs, and how often shards are downloaded.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llmshearing.data.downloads import downloads
from llmshearing.data.permutation import most_sub_streams
from llmshearing.data.plan import RoundPlan, shuffled_places
from llmshearing.data.resume import DataShape, restore_plan, save_state
from llmshearing.data.rounds import Rounds
from llmshearing.data.streams import Streams

SHARES = {"cc": 0.67, "github": 0.045, "book": 0.045, "stackexchange": 0.02, "wiki": 0.045, "arxiv": 0.025, "c4": 0.15}
PER_SHARD = 8180  # sequences of 4096 tokens of two bytes each in 64 MB
SHARD_BYTES = 1 << 26
SEED, BLOCK, WORKERS = 9176, 1 << 18, 2


def median(work: Callable[[], Any], *, ahead: bool = False) -> float:
    """Milliseconds that ``work`` takes; ``ahead``: what workers do while they wait for a plan is done already."""
    seconds = []
    for _ in range(5):
        if not ahead:
            shuffled_places.cache_clear()
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return 1000 * statistics.median(seconds)


def measure(samples: int, *, ranks: int, batch: int, interval: int, sub_streams: int, nodes: Sequence[int]) -> None:
    """Print the tables.

    Args:
        samples: of the run, which reads its data once.
        ranks: processes.
        batch: samples in a global batch.
        interval: batches in a round.
        sub_streams: see ``DynamicStreamingDataset``.
        nodes: for how many to say what they download.
    """
    names, shares = tuple(SHARES), tuple(SHARES.values())
    shards = [np.full(max(1, round(samples * share / PER_SHARD)), PER_SHARD) for share in shares]
    streams = Streams(names, shards, seed=SEED, block_size=BLOCK, sub_streams=sub_streams)
    most = tuple(map(most_sub_streams, shards))
    shape = DataShape(
        names, "0" * 16, interval, batch, shuffle_seed=SEED, shuffle_block_size=BLOCK, shards=("0" * 8,) * len(names),
        first={"proportions": "0" * 8, "start": "0" * 8}, sub_streams=sub_streams, most_sub_streams=most,
    )  # fmt: skip
    first = RoundPlan(
        0, 0, shape.round_size, shares, (0,) * len(names), SEED,
        batch_size=batch, sub_streams=max(shape.splits(sub_streams)),
    )  # fmt: skip
    rounds = samples // first.size
    middle = first.following(rounds=rounds // 2)
    rows = batch // ranks
    places = (np.arange(0, interval, WORKERS)[:, None] * batch + np.arange(rows)).reshape(-1)

    def ids_of(plan: RoundPlan) -> None:
        streams.sample_ids(dataclasses.replace(plan), places)  # whose layout nobody has worked out yet

    state = save_state(middle, middle.begin + first.size // 2, shape)
    text = json.dumps(state)
    shared = Rounds(middle, timeout=1.0)
    shared.hold()

    def restart() -> None:
        again = Streams(names, shards, seed=SEED, block_size=BLOCK, sub_streams=sub_streams)
        again.sample_ids(restore_plan(json.loads(text), shape), places[len(places) // 2 :])

    count = sum(map(len, shards))
    whole, ready = median(lambda: ids_of(middle)), median(lambda: ids_of(middle), ahead=True)
    print(f"{samples:,} samples in {count:,} shards of {len(names)} domains, {sub_streams} sub-streams;")
    print(f"{rounds:,} rounds of {interval} batches of {batch}; {ranks} ranks with {WORKERS} workers each.\n")
    print("| of the data | |\n|---|---|")
    print(f"| the next round's plan | {median(lambda: middle.following(shares).counts):.1f} ms |")
    print(f"| a worker's samples of it, order of the round included | {whole:.0f} ms |")
    print(f"| the same with that order worked out beforehand, as workers do | {ready:.0f} ms |")
    waits = median(lambda: [shared.wait_for(middle.begin + i * batch) for i in range(1000)])
    print(f"| looking for a batch's plan | {waits:.0f} us |")
    print(f"| a checkpoint's state, within a round | {len(text):,} bytes |")
    print(f"| restart from there: restoring the plan, and a worker's first samples | {median(restart):.0f} ms |\n")
    print("| nodes | downloads per node | times the data | in the first round | times |\n|---|---|---|---|---|")
    sizes = [np.full(len(each), SHARD_BYTES) for each in shards]
    for each in nodes:
        cells = []
        for end in (first.following(rounds=rounds), first.following()):
            found = downloads(streams.orders, sizes, first.used, end.used, lanes=first.lanes, nodes=each)
            cells += [f"{found.by_node.max() / 1e9:,.1f} GB", f"{found.amplification:.3f}"]
        print(f"| {each} | {' | '.join(cells)} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--samples", type=int, default=10**9)
    parser.add_argument("--ranks", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1024, help="samples in a global batch")
    parser.add_argument("--interval", type=int, default=400, help="batches in a round")
    parser.add_argument("--sub-streams", type=int, default=64)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4, 16, 64])
    measure(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
