"""What a cut takes. Runs in the peers' environment too, so it imports nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def measured(cut: Callable[[], dict[str, Any]], report: str | Path) -> None:
    """Cut, and write to ``report`` what the cut says of itself beside its seconds and memory.

    ``peak_mb`` is the largest resident memory of the process up to now, ``before_mb`` what it had when libraries were
    imported and the cut began. Not ``ru_maxrss``: a new process begins with that of the one that started it.
    """
    before, begin = _memory("VmRSS"), time.perf_counter()
    chosen = cut()
    seconds = time.perf_counter() - begin
    figures = {"seconds": seconds, "peak_mb": _memory("VmHWM"), "before_mb": before, "chosen": chosen}
    Path(report).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _memory(name: str) -> float:
    """An entry of this process's status, in MB of a million bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024 / 1e6
