"""Times and peak memory of training steps, one way against another."""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

Step = Callable[[], float]  # runs one training step and returns its seconds
_PEAK = re.compile(r"VmHWM:\s+(\d+) kB")


def compare(plain: Step, other: Step, *, pairs: int) -> tuple[float, float, float]:
    """Medians of both steps' seconds, and of the ratio of neighbouring ones; each comes first in turn."""
    for _ in range(3):
        plain(), other()
    seconds = []
    for number in range(pairs):
        if number % 2:
            later = other()
            seconds.append((plain(), later))
        else:
            seconds.append((plain(), other()))
    first, second = zip(*seconds, strict=True)
    return statistics.median(first), statistics.median(second), statistics.median(b / a for a, b in seconds)


def peak_memory(make_step: Callable[..., Step], small: str, *arguments: object) -> float:
    """Peak megabytes of a few steps above what was in use before, measured in a process of its own.

    Args:
        make_step: importable; builds a step.
        small: takes the first argument's place in a step before the measurement: what libraries load on first use is
            nobody's cost.
        arguments: of ``make_step``.
    """
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # freed tensors leave at once: residency is what is in use
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_memory, make_step, small, *arguments).result()


def _peak_memory(make_step: Callable[..., Step], small: str, *arguments: object) -> float:
    torch.set_flush_denormal(True)
    make_step(small, *arguments[1:])()
    gc.collect()
    before = _peak_so_far()
    step = make_step(*arguments)
    for _ in range(4):
        step()
    return _peak_so_far() - before


def _peak_so_far() -> float:
    """Megabytes that this process has had resident at most; unlike ru_maxrss nothing of the one that started it."""
    found = _PEAK.search(Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024
