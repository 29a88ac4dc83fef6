"""Starting tests.data.training on ranks, and what is left of it afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.conftest import REPOSITORY, heed_signals
from tests.forkserver import Forked, ForkServer


def start(ranks: int, out: Path, *, forked: ForkServer | None = None, **job: Any) -> subprocess.Popen[bytes] | Forked:
    """Start a run; ``out`` becomes the folder of its results, its log and the other ranks' stderr.

    By ``forked``, where nothing hangs on the launcher and its processes: it is ten seconds faster for each rank.
    """
    out.mkdir()
    job = {"out": str(out), **{key: str(value) if isinstance(value, Path) else value for key, value in job.items()}}
    command = [sys.executable, "-m", "composer", "-n", str(ranks), "--stderr", str(out / "stderr{rank}")]
    command += ["-m", "tests.data.training", json.dumps(job)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    if forked is not None:
        return forked.start(command, cwd=REPOSITORY, env=environment)
    with (out / "log").open("wb") as log:
        return subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=heed_signals,
        )


def finish(process: subprocess.Popen[bytes] | Forked, out: Path, *, timeout: float = 300) -> str:
    """Wait for a run that must end by itself. Returns its log."""
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        for left in processes_of(out):
            left.kill()
        if isinstance(process, Forked):
            process.kill_group()
        raise AssertionError(f"still running after {timeout} s:\n{_log(process, out)}") from None
    return _log(process, out)


def _log(process: subprocess.Popen[bytes] | Forked, out: Path) -> str:
    return "".join(process.read()) if isinstance(process, Forked) else (out / "log").read_text()


def results(process: subprocess.Popen[bytes] | Forked, out: Path) -> list[dict[str, Any]]:
    """What each rank of a run that must succeed saw."""
    log = finish(process, out)
    assert process.returncode == 0, log
    return [json.loads(path.read_text()) for path in sorted(out.glob("rank*.json"))]


def global_batches(ranks: list[dict[str, Any]]) -> list[list[tuple[int, int]]]:
    """The global batches: those of the ranks in order, as one."""
    return [
        [tuple(row) for part in parts for row in part]
        for parts in zip(*(rank["batches"] for rank in ranks), strict=True)
    ]


def processes_of(out: Path) -> list[psutil.Process]:
    """The launcher, ranks and workers of a run that are alive."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(out) in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def wait_until(condition: Callable[[], bool], what: str, *, timeout: float = 120) -> None:
    """Wait for ``condition``; that it does not come true is an error."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout} s for {what}"
        time.sleep(0.1)
