"""Parts of a check that end in every way, for test_gpu_check."""

from __future__ import annotations

import os
import signal
import subprocess
import time

from benchmarks.gpu_check.part import FailedError, Found, Setup, SkippedError, within


def fine(setup: Setup) -> Found:
    """Finds something, and writes."""
    print("what it prints", flush=True)
    return Found(within("a difference of", 0.5, 1.0), {"value": 0.5})


def wrong(setup: Setup) -> Found:
    """Finds too much."""
    return Found(within("a difference of", float("nan"), 1.0))


def absent(setup: Setup) -> Found:
    """Needs what is not there."""
    raise SkippedError("needs a GPU")


def raises(setup: Setup) -> Found:
    """Has a mistake."""
    raise ValueError("two\nlines")


def killed(setup: Setup) -> Found:
    """Ends as after a fault of the driver."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise FailedError("still here")


def hangs(setup: Setup) -> Found:
    """Does not end, and neither does what it has started."""
    process = subprocess.Popen(["sleep", "1000"])
    (setup.folder / "pid").write_text(str(process.pid))
    time.sleep(1000)
    return Found("")
