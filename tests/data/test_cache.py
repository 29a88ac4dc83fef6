"""A cache in which killed runs have left what they were fetching."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from streaming import Stream
from torch.utils.data import _utils

from llmshearing.data import opening
from llmshearing.data.dataset import DynamicStreamingDataset
from llmshearing.data.evaluation import DomainDataset
from llmshearing.data.loaders import DynamicDataLoader
from llmshearing.errors import InputError
from tests.data.helpers import mixes, numbers, open_dataset, train

_PREPARING = 2


@pytest.fixture
def remote(data: Path, tmp_path: Path) -> Path:
    """A copy of :func:`data` that a test may spoil."""
    return Path(shutil.copytree(data, tmp_path / "remote"))


def open_remote(remote: Path, cache: Path, **settings: Any) -> DynamicStreamingDataset:
    return open_dataset(cache, remote=str(remote), **{"download_retry": 1, **settings})


@pytest.mark.parametrize("workers", [0, 2])
def test_downloads_of_nobody_are_taken_over(data: Path, tmp_path: Path, workers: int) -> None:
    expected = train(open_dataset(data), 8, after=mixes())
    dataset = open_remote(data, tmp_path / "cache", download_timeout=0.5)
    for shard in range(0, dataset.num_shards, 2):  # as workers leave them that are killed or stopped while they fetch
        dataset._shard_states[shard] = _PREPARING
        part = tmp_path / "cache" / Path(dataset.shards[shard].dirname).name / dataset.shards[shard].raw_data.basename
        part.write_bytes(b"some")
    begin = time.monotonic()
    assert train(dataset, 8, after=mixes(), num_workers=workers) == expected
    assert time.monotonic() - begin < 300  # it used to wait for ever


def test_a_download_under_way_is_waited_for(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = open_remote(data, tmp_path / "cache", download_timeout=0.6, download_retry=2)
    dataset._shard_states[3], dataset._shard_access_times[3] = _PREPARING, time.time_ns()
    begin = time.monotonic()
    dataset.prepare_shard(3)
    assert time.monotonic() - begin >= 1.2  # both attempts
    assert "was not there after 1.2 s" in caplog.text
    dataset._shard_states[3] = _PREPARING
    dataset.prepare_shard(3, blocking=False)  # which leaves it to others


def test_iteration_may_stop_during_a_download_and_begin_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, download = tmp_path / "slow", Stream._download_file
    slow.touch()

    def download_slowly(self: Stream, name: str, to: str | None = None) -> str:
        if slow.exists() and "shard" in name and not name.endswith("00000.mds"):
            time.sleep(20)  # until its worker is ended
        return download(self, name, to)

    monkeypatch.setattr(Stream, "_download_file", download_slowly)
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.3)  # how long torch lets workers end by themselves
    settings: dict[str, Any] = {"proportions": {"web": 1.0}, "update_interval": 16, "shuffle_block_size": 16}
    dataset = open_remote(data, tmp_path / "cache", download_timeout=2.0, **settings)
    dataset.rounds.hold()
    batches = iter(DynamicDataLoader(dataset, batch_size=4, num_workers=2))
    taken = [numbers(next(batches))]
    batches.close()  # type: ignore[attr-defined]
    slow.unlink()
    assert _PREPARING in dataset._shard_states.numpy()
    dataset.load_state_dict(dataset.state_dict(4))
    dataset.rounds.hold()
    taken += train(dataset, 40, num_workers=2)  # all but two batches of a pass
    reference = open_dataset(data, **settings)
    reference.rounds.hold()
    assert taken == train(reference, 41)


def test_a_cached_shard_that_was_cut_off_is_fetched_again(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = train(open_dataset(data), 12, after=mixes())
    dataset = open_remote(data, tmp_path / "cache")
    train(dataset, 12, after=mixes())
    dataset.unlink()
    del dataset
    files = sorted((tmp_path / "cache").rglob("*.mds"))
    for path in files[::2]:
        path.write_bytes(path.read_bytes()[:200])
    again = open_remote(data, tmp_path / "cache")
    assert caplog.text.count("has 200 bytes, where the index says") == len(files[::2])
    assert train(again, 12, after=mixes()) == expected
    assert again.cache_usage == sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.*"))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_is_cut_off_while_a_run_uses_it_is_fetched_once(
    remote: Path, data: Path, tmp_path: Path, workers: int
) -> None:
    expected = train(open_dataset(data), 12, after=mixes())
    dataset = open_remote(remote, tmp_path / "cache")
    after = mixes()
    assert train(dataset, 8, after=after) == expected[:8]
    for path in (tmp_path / "cache").rglob("*.mds"):
        path.write_bytes(path.read_bytes()[:200])
    dataset.load_state_dict(dataset.state_dict(32))
    assert train(dataset, 4, after=after, num_workers=workers) == expected[8:]
    for path in (*(tmp_path / "cache").rglob("*.mds"), *remote.rglob("*.mds")):
        path.write_bytes(path.read_bytes()[:200])  # now what is fetched is no better
    dataset.load_state_dict(dataset.state_dict(48))
    with pytest.raises(RuntimeError, match="is damaged: sample"):
        train(dataset, 4, after=after, num_workers=workers)


def test_eval_shards_are_checked_and_fetched_again(
    remote: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"remote": str(remote / "web"), "validate_hash": "xxh64"}
    whole = DomainDataset("web", str(tmp_path / "cache"), **settings)
    shard = sorted((tmp_path / "cache").glob("*.mds"))[1]
    shard.write_bytes(shard.read_bytes()[:200])
    again = DomainDataset("web", str(tmp_path / "cache"), **settings)
    assert "is fetched again: 'shard.00001.mds' has 200 bytes" in caplog.text
    assert [row["input_ids"].tolist() for row in again] == [row["input_ids"].tolist() for row in whole]
    shard.unlink()
    source = remote / "web" / shard.name
    source.write_bytes(source.read_bytes()[:-1] + b"\1")
    with pytest.raises(InputError, match=r"shard.00001.mds' cannot be fetched from .*Checksum failure"):
        DomainDataset("web", str(tmp_path / "cache"), **settings)
    source.write_bytes(source.read_bytes()[:200])
    with pytest.raises(InputError, match="shard.00001.mds' is damaged: 'shard.00001.mds' has 200 bytes"):
        DomainDataset("web", str(remote / "web"))


def test_locks_lie_where_the_memory_does(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))  # shared between nodes, or not there at all
    dataset = open_dataset(data)
    assert dataset._filelock_root == f"/dev/shm/llmshearing-{os.getuid()}" == opening._locks()
    dataset.prepare_shard(0)
    assert not (tmp_path / "none").exists()
