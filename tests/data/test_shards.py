"""Shards that have to be fetched, are missing or are damaged."""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streaming import Stream
from streaming.base.spanner import Spanner

from llmshearing.data import opening
from llmshearing.data.dataset import DynamicStreamingDataset
from llmshearing.data.shards import ShardBounds, ShardedDataset
from llmshearing.errors import InputError
from tests.conftest import REPOSITORY
from tests.data.helpers import mixes, open_dataset, shared_memory_of, train, write_domain
from tests.data.launch import wait_until
from tests.forkserver import ForkServer

SHARD_BYTES = 600  # a little more than a shard of 16 samples


@pytest.fixture
def remote(data: Path, tmp_path: Path) -> Path:
    """A copy of :func:`data` that a test may spoil."""
    return Path(shutil.copytree(data, tmp_path / "remote"))


def open_remote(remote: Path, cache: Path, **settings: Any) -> DynamicStreamingDataset:
    return open_dataset(cache, remote=str(remote), **{"download_retry": 1, **settings})


def shard_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.mds"))


def size_of(files: list[Path]) -> int:
    return sum(path.stat().st_size for path in files)


def test_bounds_say_what_spanner_says() -> None:
    sizes = np.random.default_rng(0).integers(0, 50, 200)
    bounds, spanner = ShardBounds(sizes), Spanner(sizes.copy())
    for sample_id in range(int(sizes.sum())):
        assert bounds[sample_id] == spanner[sample_id]
    for outside in (-1, int(sizes.sum())):
        with pytest.raises(IndexError):
            bounds[outside]


_OPEN_TOGETHER = """
import gc, sys, time
from pathlib import Path
from tests.data.helpers import open_dataset

data, marks, run, runs, times = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])

def all_are_here(place):
    (marks / f"{place}-{run}").touch()
    while len(list(marks.glob(f"{place}-*"))) < runs:
        time.sleep(0.001)

for time_ in range(times):
    all_are_here(f"begin{time_}")
    dataset = open_dataset(Path(data))
    all_are_here(f"end{time_}")  # nobody leaves before all are in
    print(dataset._shm_prefix_int)
    del dataset
    gc.collect()
"""


def test_runs_that_start_together_do_not_collide(data: Path, tmp_path: Path, forked: ForkServer) -> None:
    runs, times = 3, 3
    processes = []
    for run in map(str, range(runs)):
        (tmp_path / run).mkdir()
        command = [sys.executable, "-c", _OPEN_TOGETHER, data, tmp_path, run, str(runs), str(times)]
        environment = {**os.environ, "TMPDIR": str(tmp_path / run)}  # as of a job of its own
        processes.append(forked.start(command, cwd=REPOSITORY, env=environment))
    try:
        assert [process.wait(timeout=60) for process in processes] == [0] * runs
    finally:
        for process in processes:
            process.kill_group()
    prefixes = [process.read()[0].split() for process in processes]
    assert [len(set(taken)) for taken in zip(*prefixes, strict=True)] == [runs] * times


def test_shared_memory_goes_with_the_dataset(data: Path) -> None:
    dataset = open_dataset(data)
    held = shared_memory_of(data)
    train(dataset, 2, num_workers=2)  # workers end with their copies
    assert dataset._shm_prefix_int in {int(prefix) for prefix in shared_memory_of(data)}
    del dataset
    gc.collect()
    assert len(shared_memory_of(data)) < len(held)


_OPEN_AND_UNLINK = """
import sys, time
from pathlib import Path
from tests.data.helpers import open_dataset

dataset = open_dataset(Path(sys.argv[1]))
dataset.unlink()
print(dataset._shm_prefix_int, flush=True)
while not Path(sys.argv[2]).exists():
    time.sleep(0.01)
del dataset  # and at the end of the process, once more
"""


def test_names_that_another_run_has_taken_since_stay_its_own(data: Path, tmp_path: Path, forked: ForkServer) -> None:
    go_on = tmp_path / "go on"
    process = forked.start([sys.executable, "-c", _OPEN_AND_UNLINK, data, go_on], cwd=REPOSITORY)
    wait_until(lambda: process.read()[0].endswith("\n"), "the prefix")
    prefix = int(process.read()[0])
    kinds = ("locals", "barrier", "next_epoch", "cache_usage", "shard_states", "shard_access_times")
    taken = [SharedMemory(f"{prefix:06}_{kind}", create=True, size=8) for kind in kinds]
    try:
        go_on.touch()
        code, (_, errors) = process.wait(timeout=60), process.read()
        assert code == 0, errors
        assert "Traceback" not in errors, errors
        for memory in taken:
            SharedMemory(memory.name).close()  # it is still there
    finally:
        for memory in taken:
            memory.close()
            memory.unlink()


def test_a_run_does_not_wait_for_ever_for_its_turn(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(opening, "_TURN", 0.3)
    monkeypatch.setattr(opening, "_MEMORY", str(tmp_path))
    lock = Path(opening._locks()) / "opening.lock"
    with lock.open("w") as other_run, caplog.at_level(logging.WARNING):
        fcntl.flock(other_run, fcntl.LOCK_EX)
        begin = time.monotonic()
        assert len(open_dataset(data)[0]["input_ids"]) == 8
        assert time.monotonic() - begin >= 0.3
        assert [message for message in caplog.messages if f"held the lock file '{lock}' for 0.3 s" in message]
        caplog.clear()
        fcntl.flock(other_run, fcntl.LOCK_UN)
        open_dataset(data)
        assert not caplog.messages  # and the lock was not left taken


@pytest.mark.parametrize("workers", [0, 3])
def test_remote_data_arrives_in_the_same_order(data: Path, tmp_path: Path, workers: int) -> None:
    expected = train(open_dataset(data), 18, after=mixes())
    assert train(open_remote(data, tmp_path / "cache"), 18, after=mixes(), num_workers=workers) == expected


def test_compressed_shards(tmp_path: Path) -> None:
    write_domain(tmp_path / "remote" / "web", 0, 60, compression="zstd")
    dataset = open_remote(tmp_path / "remote", tmp_path / "cache", proportions={"web": 1.0}, validate_hash="xxh64")
    assert len({row for batch in train(dataset, 12, after=mixes_of_one()) for row in batch}) == 48


def mixes_of_one() -> Any:
    return iter([[1.0]] * 100)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_cache_is_bounded(data: Path, tmp_path: Path, workers: int) -> None:
    limit = 10_000  # of the 20,000 bytes that all shards take, besides the indexes
    index_bytes = size_of(list(data.rglob("index.json")))
    dataset = open_remote(data, tmp_path / "cache", cache_limit=limit + index_bytes, shuffle_block_size=16)
    expected = train(open_dataset(data, shuffle_block_size=16), 36, after=mixes())
    assert train(dataset, 36, after=mixes(), num_workers=workers) == expected
    assert size_of(shard_files(data)) > 1.9 * limit
    assert limit / 2 < size_of(shard_files(tmp_path / "cache")) <= limit + (1 + workers) * SHARD_BYTES  # under way


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_disappeared_is_named(remote: Path, tmp_path: Path, workers: int) -> None:
    for path in shard_files(remote / "web"):
        path.unlink()
    dataset = open_remote(remote, tmp_path / "cache")
    with pytest.raises(RuntimeError, match=r"Shard '.*cache/web/shard.*mds' cannot be fetched from '?.*remote/web"):
        train(dataset, 18, after=mixes(), num_workers=workers)


def test_a_shard_that_comes_back_is_fetched(remote: Path, data: Path, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    shutil.move(remote / "web", hidden)
    (remote / "web").mkdir()
    shutil.copy(hidden / "index.json", remote / "web")
    back = threading.Timer(0.5, lambda: shutil.copytree(hidden, remote / "web", dirs_exist_ok=True))
    back.start()
    dataset = open_remote(remote, tmp_path / "cache", download_retry=3)
    assert train(dataset, 6, after=mixes()) == train(open_dataset(data), 6, after=mixes())
    back.join()


def test_a_corrupt_shard_is_fetched_again_and_then_named(
    remote: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoiled = shard_files(remote / "web")
    for path in spoiled:
        path.write_bytes(path.read_bytes()[:-1] + b"\1")
    cache = tmp_path / "cache"
    dataset = open_remote(remote, cache, validate_hash="xxh64", download_retry=3, predownload=0)
    with caplog.at_level(logging.WARNING), pytest.raises(RuntimeError, match="Checksum failure"):
        train(dataset, 18, after=mixes())
    assert sum("is fetched again" in message for message in caplog.messages) >= 2
    assert not shard_files(cache / "web")  # none is left to be taken for good later


def test_a_failure_elsewhere_does_not_leave_others_waiting(data: Path, tmp_path: Path) -> None:
    dataset = open_remote(data, tmp_path / "cache")
    dataset._shard_states[3] = 2  # another process is fetching it
    timer = threading.Timer(0.2, lambda: dataset._forget(3))  # and fails
    timer.start()
    dataset.prepare_shard(3)
    timer.join()
    assert dataset._shard_states[3] == 3


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:300]), "damaged: .* has 300 bytes, where the index says 512"),
        (Path.unlink, "missing. Copy it again, or set remote to where it is"),
    ],
)
def test_an_only_copy_that_is_not_whole_is_refused_at_once(
    remote: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    spoil(shard_files(remote / "web")[1])
    with pytest.raises(InputError, match=rf"Shard '.*web/shard.00001.mds' is {message}"):
        open_dataset(remote)


def test_a_local_shard_that_goes_or_spoils_later_is_named(remote: Path) -> None:
    dataset = open_dataset(remote)
    for path in shard_files(remote / "web"):
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(RuntimeError, match=r"Shard '.*web/shard.*' is damaged: sample .* cannot be read"):
        train(dataset, 4, after=mixes())
    for path in shard_files(remote):
        path.unlink()
    with pytest.raises(RuntimeError, match=r"Shard '.*shard.*' cannot be fetched from anywhere"):
        train(dataset, 4, after=mixes())


@pytest.mark.parametrize("same", [False, True])
def test_the_only_copy_is_never_evicted(remote: Path, same: bool) -> None:
    stream = Stream(local=str(remote / "web"), remote=str(remote / "web") if same else None)
    with pytest.raises(InputError, match="their only copy"):
        ShardedDataset(streams=[stream], cache_limit="1gb", batch_size=1)


def test_settings_that_streaming_refuses(data: Path, tmp_path: Path, make_data: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=r"The data cannot be opened: .*cache"):
        open_remote(data, tmp_path / "cache", cache_limit=100)
    with pytest.raises(InputError, match="The data cannot be opened"):
        open_remote(tmp_path / "nowhere", tmp_path / "other")


def test_a_domain_without_samples_is_named(remote: Path) -> None:
    (remote / "web" / "index.json").write_text('{"shards": [], "version": 2}')
    with pytest.raises(InputError, match=r"no samples: .*web/index.json. Prepare more data"):
        open_dataset(remote)


def test_two_runs_cannot_share_a_cache(data: Path, tmp_path: Path) -> None:
    first = open_remote(data, tmp_path / "cache")
    with pytest.raises(InputError, match=r"Reused local directory.*Provide a different one"):
        open_remote(data, tmp_path / "cache")
    assert len(train(first, 4, after=mixes())) == 4


def test_what_a_killed_run_left_does_not_hide_those_after_it(data: Path, tmp_path: Path) -> None:
    killed, first = open_dataset(data), open_remote(data, tmp_path / "cache")
    Path(f"/dev/shm/{killed._shm_prefix_int:06}_locals").unlink()
    with pytest.raises(InputError, match=r"Reused local directory.*Provide a different one"):
        open_remote(data, tmp_path / "cache")
    assert first._shm_prefix_int > killed._shm_prefix_int


def test_what_other_runs_have_open_is_looked_at_and_closed(data: Path) -> None:
    others = [open_dataset(data) for _ in range(3)]
    del others[0]  # what is opened once per process is open now
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        open_dataset(data)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
