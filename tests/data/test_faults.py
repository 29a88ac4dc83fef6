"""A run that is killed, interrupted or crashes ends, with an error, and leaves nothing behind."""

from __future__ import annotations

import fcntl
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.data.helpers import shared_memory_of, write_domain
from tests.data.launch import finish, global_batches, processes_of, start, wait_until

pytestmark = [pytest.mark.dist, pytest.mark.slow]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Data of the test's own: what other tests of this process still hold open must not count as left behind."""
    for index, (domain, count) in enumerate({"code": 300, "web": 200, "books": 100}.items()):
        write_domain(tmp_path / "data" / domain, index, count)
    return tmp_path / "data"


@pytest.fixture
def job(make_data: Callable[..., Path], data: Path) -> dict[str, Any]:
    """A run that goes on for ever, with workers that wait at rounds' edges."""
    return {
        "train_data": data,
        "eval_data": make_data(code=5, web=3, books=4),
        "duration": "100000ba",
        "recorder": {"pause": 0.05},
        "loader": {"num_workers": 2},
    }


def running_rank(out: Path, rank: int) -> psutil.Process:
    """Wait until a rank trains; returns its process."""
    wait_until(lambda: len(list(out.glob("pid*"))) > rank, "the ranks")
    process = psutil.Process(int((out / f"pid{rank}").read_text()))
    wait_until(lambda: len(workers_of(process)) == 2, "the workers")
    return process


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children() if "tests.data.training" in " ".join(child.cmdline())]


def assert_nothing_is_left(out: Path, data: Path) -> None:
    wait_until(lambda: not processes_of(out), "all processes to end", timeout=60)
    wait_until(lambda: not shared_memory_of(data), "the shared memory to go", timeout=30)
    for log in (out / "log", out / "stderr1"):
        assert "resource_tracker.py" not in log.read_text(), log.read_text()  # nor was anything unlinked twice


def test_a_killed_worker_ends_the_run(job: dict[str, Any], data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    launcher = start(2, out, **job)
    workers_of(running_rank(out, 1))[0].kill()
    assert "killed by signal" in finish(launcher, out)
    assert launcher.returncode != 0
    assert_nothing_is_left(out, data)


def test_a_killed_rank_ends_the_run(job: dict[str, Any], data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    launcher = start(2, out, **job)
    running_rank(out, 1)
    running_rank(out, 0).kill()  # the one that made the shared memory
    finish(launcher, out)
    assert launcher.returncode != 0
    assert_nothing_is_left(out, data)


def test_ctrl_c_ends_the_run(job: dict[str, Any], data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    launcher = start(2, out, **job)
    running_rank(out, 1)
    os.killpg(launcher.pid, signal.SIGINT)  # as a terminal does, to the launcher, its ranks and their workers
    finish(launcher, out)
    assert_nothing_is_left(out, data)


def test_an_exception_ends_the_run(job: dict[str, Any], data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    job["recorder"] = {"crash_at": 3}  # the workers wait at the edge by then
    launcher = start(2, out, **job)
    assert "crashed on purpose" in finish(launcher, out)
    assert launcher.returncode != 0
    assert_nothing_is_left(out, data)


def test_ranks_go_on_together_where_their_turn_does_not_come(job: dict[str, Any], data: Path, tmp_path: Path) -> None:
    job = {**job, "duration": "5ba", "turn": 1.0, "memory": str(tmp_path), "loader": {"num_workers": 0}}
    out = tmp_path / "run"
    lock = tmp_path / f"llmshearing-{os.getuid()}" / "opening.lock"
    lock.parent.mkdir()
    with lock.open("w") as hanging_run:
        fcntl.flock(hanging_run, fcntl.LOCK_EX)
        launcher = start(2, out, **job)
        log = finish(launcher, out)
    assert launcher.returncode == 0, log
    assert f"held the lock file '{lock}' for 1 s" in log
    assert "lock file" not in (out / "stderr1").read_text()  # only a host's first rank takes turns
    assert len(global_batches([json.loads((out / f"rank{rank}.json").read_text()) for rank in (0, 1)])) == 5
    assert_nothing_is_left(out, data)


def test_two_runs_on_one_host_do_not_disturb_each_other_and_leave_nothing(
    job: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    job = {**job, "duration": "8ba"}
    outs = [tmp_path / "one", tmp_path / "two"]
    launchers = [start(2, out, **job) for out in outs]
    for launcher, out in zip(launchers, outs, strict=True):
        log = finish(launcher, out)
        assert launcher.returncode == 0, log
    first, second = ([(out / f"rank{rank}.json").read_text() for rank in (0, 1)] for out in outs)
    assert first == second
    for out in outs:
        assert_nothing_is_left(out, data)
