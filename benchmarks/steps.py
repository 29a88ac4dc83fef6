"""Times and peak memory of training steps, one way against another."""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from transformers import LlamaConfig

Step = Callable[[], None]  # runs one training step
SMALL = {"small": (128, 2, 64, 1, 16)}  # a size, as the benchmarks have them, that takes next to nothing
_PEAK = re.compile(r"VmHWM:\s+(\d+) kB")


def llama_config(hidden: int, layers: int, vocabulary: int, length: int) -> LlamaConfig:
    """A model with heads of 32 dimensions, two of them on each key-value head."""
    return LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        vocab_size=vocabulary,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
        intermediate_size=hidden * 11 // 4,
        max_position_embeddings=length,
        use_cache=False,
    )


def compare(plain: Step, other: Step, *, pairs: int) -> tuple[float, float, float]:
    """Medians of both steps' seconds, and of the ratio of neighbouring ones; each comes first in turn."""
    for _ in range(3):
        plain()
        other()
    seconds = []
    for number in range(pairs):
        if number % 2:
            later = _seconds(other)
            seconds.append((_seconds(plain), later))
        else:
            seconds.append((_seconds(plain), _seconds(other)))
    first, second = zip(*seconds, strict=True)
    return statistics.median(first), statistics.median(second), statistics.median(b / a for a, b in seconds)


def _seconds(step: Step) -> float:
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def peak_memory(make_step: Callable[..., Step], *arguments: object) -> float:
    """Peak megabytes of a few steps above what was in use before, measured in a process of its own.

    Args:
        make_step: importable; builds a step.
        arguments: of ``make_step``, the name of a size first. A step of the size :data:`SMALL` comes before the
            measurement: what libraries load on first use is nobody's cost.
    """
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # freed tensors leave at once: residency is what is in use
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_memory, make_step, *arguments).result()


def _peak_memory(make_step: Callable[..., Step], *arguments: object) -> float:
    torch.set_flush_denormal(True)
    make_step(*SMALL, *arguments[1:])()
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
