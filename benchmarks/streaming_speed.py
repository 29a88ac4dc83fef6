"""``python -m benchmarks.streaming_speed``: what dynamic batch loading costs beside a plain ``StreamingDataset``.

Three measures, on data that is written for the purpose:

1. samples per second against a plain ``StreamingDataset`` with the same shards, batch size and workers, taking turns;
   medians. The plain one is measured with samples as they are stored and with samples as training needs them.
2. a round's edge: how much longer than any other batch the first batch of a round takes, its proportions just set.
3. opening a domain and planning a round, by the number of samples behind the same number of shards.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
import logging
import statistics
import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from streaming import MDSWriter, Stream, StreamingDataLoader, StreamingDataset

from llmshearing.data.dataset import DynamicStreamingDataset
from llmshearing.data.loaders import DynamicDataLoader
from llmshearing.data.plan import shuffled_places

DOMAINS = ("code", "web", "books")
SEQ_LEN = 2048
SAMPLES = 12_000  # per domain
BATCH = 32
INTERVAL = 400  # batches in a round, as in the paper's continued pre-training
STEP = 0.1  # seconds, a short training step
TURNS = 7
BATCHES = 150  # per turn


def write_data(root: Path) -> None:
    """Random tokens, in shards of 8 MB."""
    rng = np.random.default_rng(0)
    for domain in DOMAINS:
        columns = {"tokens": f"ndarray:uint16:{SEQ_LEN}"}
        with MDSWriter(out=str(root / domain), columns=columns, size_limit=1 << 23) as writer:
            for _ in range(SAMPLES):
                writer.write({"tokens": rng.integers(0, 32000, SEQ_LEN, np.uint16)})


def as_needed(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Collate what a plain dataset gives into what a model takes."""
    input_ids = torch.from_numpy(np.stack([sample["tokens"] for sample in samples]).astype(np.int64))
    return {"input_ids": input_ids, "labels": input_ids.clone()}


def plain(root: Path, workers: int, **loader: Any) -> StreamingDataLoader:
    """A stock loader over the same shards."""
    streams = [Stream(local=str(root / domain)) for domain in DOMAINS]
    dataset = StreamingDataset(streams=streams, batch_size=BATCH, shuffle=True)
    return StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, **loader)


def dynamic(root: Path, workers: int, *, held: bool) -> DynamicDataLoader:
    """Ours; ``held`` goes on from round to round by itself."""
    dataset = DynamicStreamingDataset(
        local=str(root),
        proportions={domain: 1 / len(DOMAINS) for domain in DOMAINS},
        update_interval=INTERVAL,
        batch_size=BATCH,
        vocab_size=32000,
    )
    if held:
        dataset.rounds.hold()
    return DynamicDataLoader(dataset, batch_size=BATCH, num_workers=workers)


def rate(make: Callable[[], Any]) -> float:
    """Samples per second over :data:`BATCHES` batches, once the workers have started."""
    batches = iter(make())
    for _ in range(20):
        next(batches)
    begin = time.perf_counter()
    for _ in range(BATCHES):
        next(batches)
    return BATCHES * BATCH / (time.perf_counter() - begin)


def compare_speed(root: Path) -> None:
    """Print measure 1."""
    print(f"Samples of {SEQ_LEN} tokens per second, medians of {TURNS} turns of {BATCHES} batches of {BATCH}:\n")
    print("| workers | plain, as stored | plain, as needed | dynamic | of as stored | of as needed |")
    print("|---|---|---|---|---|---|")
    for workers in (1, 2):
        makers = (
            functools.partial(plain, root, workers),
            functools.partial(plain, root, workers, collate_fn=as_needed),
            functools.partial(dynamic, root, workers, held=True),
        )
        turns = [[rate(make) for make in makers] for _ in range(TURNS)]
        stored, needed, ours = (statistics.median(rates) for rates in zip(*turns, strict=True))
        print(
            f"| {workers} | {stored:,.0f} | {needed:,.0f} | {ours:,.0f} | {ours / stored:.2f}x | {ours / needed:.2f}x |"
        )


def measure_edge(root: Path, *, workers: int = 2, rounds: int = 6) -> None:
    """Print measure 2."""
    loader = dynamic(root, workers, held=False)
    first, all_batches = [], []
    batches = iter(loader)
    proportions = loader.dataset.rounds.at(0).proportions
    for _ in range(rounds):
        begin = time.perf_counter()
        next(batches)
        first.append(time.perf_counter() - begin)
        for _ in range(INTERVAL - 1):
            next(batches)
        all_batches.append(time.perf_counter() - begin)
        loader.dataset.rounds.update(proportions)
    whole = statistics.median(all_batches[1:])
    edge = statistics.median(first[1:]) - whole / INTERVAL
    trained = whole + INTERVAL * STEP
    print(
        f"\nA round's edge takes {1000 * edge:.1f} ms with {workers} workers. Of a round of {INTERVAL} batches that is "
        f"{100 * edge / whole:.2f}% with nothing but data to wait for ({whole:.2f} s), {100 * edge / trained:.2f}% "
        f"with training steps of {1000 * STEP:.0f} ms."
    )


def write_index(folder: Path, *, shards: int, samples: int) -> None:
    """An index of any number of samples, with a file of one byte for each of its shards."""
    folder.mkdir(parents=True)
    shard = {
        "version": 2,
        "format": "mds",
        "column_names": ["tokens"],
        "column_encodings": [f"ndarray:uint16:{SEQ_LEN}"],
        "column_sizes": [2 * SEQ_LEN],
        "compression": None,
        "hashes": [],
        "size_limit": None,
        "zip_data": None,
    }
    names = [f"{number}.mds" for number in range(shards)]
    for name in names:  # a folder without a remote is refused where a shard is missing
        (folder / name).write_bytes(b"\0")
    entries = [
        {**shard, "samples": samples // shards, "raw_data": {"basename": name, "bytes": 1, "hashes": {}}}
        for name in names
    ]
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": entries}))


def measure_scale(root: Path, *, shards: int = 4000) -> None:
    """Print measure 3."""

    def cost(work: Callable[[], Any]) -> tuple[float, float, Any]:
        """Seconds of the fastest of three, the peak of memory in MB of a fourth under the tracer, and the result."""
        seconds = []
        for _ in range(3):
            gc.collect()
            begin = time.perf_counter()
            result = work()
            seconds.append(time.perf_counter() - begin)
        gc.collect()
        tracemalloc.start()
        work()
        peak = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        return min(seconds), peak, result

    print(f"\nOne domain of {shards} shards, a round of {INTERVAL} batches of {BATCH}:\n")
    print("| samples | open | peak | plan the first round | peak |")
    print("|---|---|---|---|---|")
    for samples in (10**6, 10**9):
        folder = root / f"scale{samples}"
        write_index(folder / "web", shards=shards, samples=samples)
        settings: dict[str, Any] = {"local": str(folder), "proportions": {"web": 1.0}, "update_interval": INTERVAL}
        opened, open_peak, dataset = cost(functools.partial(DynamicStreamingDataset, **settings, batch_size=BATCH))

        def plan(dataset: DynamicStreamingDataset = dataset) -> Any:
            dataset.order.orders[0]._passes.clear()  # a new process knows no order yet
            shuffled_places.cache_clear()
            first = dataclasses.replace(dataset.rounds.at(0))  # nor a layout
            return dataset._sample_ids(first, np.arange(first.size))

        planned, plan_peak, _ = cost(plan)
        opening = f"{1000 * opened:.0f} ms | {open_peak:.1f} MB"
        print(f"| {samples:,} | {opening} | {1000 * planned:.1f} ms | {plan_peak:.1f} MB |")


def main() -> None:
    """Measure and print."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_data(root / "data")
        compare_speed(root / "data")
        measure_edge(root / "data")
        measure_scale(root)


if __name__ == "__main__":
    main()
