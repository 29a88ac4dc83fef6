"""Ranks end with their launcher, so that what they hold is free for the next run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.dry_runs import make_debug_data
from tests.faults.scenarios import RECIPE


@pytest.mark.dist
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ends a process with its parent")
def test_training_ends_when_its_launcher_is_killed(tmp_path: Path) -> None:
    make_debug_data(tmp_path)
    composer = str(Path(sys.executable).with_name("composer"))
    overrides = ["variables.run=run", "max_duration=1000000ba"]
    with (tmp_path / "log").open("w") as log:
        launcher = subprocess.Popen(
            [composer, "-n", "1", "-m", "llmshearing.train", RECIPE, *overrides], cwd=tmp_path, stdout=log, stderr=log
        )
    metrics, lock = tmp_path / "run" / "metrics.jsonl", tmp_path / "run" / ".lock"
    assert holds(lambda: metrics.is_file() and metrics.stat().st_size > 0), (tmp_path / "log").read_text()
    rank = Path("/proc") / lock.read_text().split()[1]
    assert rank.is_dir()
    launcher.kill()
    launcher.wait()
    try:
        assert holds(lambda: not rank.is_dir())
    finally:
        if rank.is_dir():
            os.kill(int(rank.name), signal.SIGKILL)


def holds(condition: Callable[[], bool]) -> bool:
    """Whether it comes true within three minutes."""
    end = time.monotonic() + 180
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False
