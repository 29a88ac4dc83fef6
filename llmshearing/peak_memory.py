"""How much memory a computation takes at its peak on a CPU: in a process of its own, as the system counts it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from llmshearing.errors import InputError

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_in_process(load: Callable[..., Any], run: Callable[[Any], None], *arguments: Any) -> int:
    """Bytes resident at the peak of ``run(load(*arguments))``, above those before ``load``, in a new process.

    The peak of ``load`` itself does not count: reading weights may hold them twice for a moment.

    Args:
        load: makes what ``run`` needs, such as a model; a function of a module.
        run: what is measured, likewise.
        arguments: of ``load``, which can be pickled.

    Raises:
        InputError: the system does not tell; Linux does.
    """
    if not _RESET.exists():
        raise InputError("Peak memory on a CPU is known on Linux only (/proc/self/clear_refs). Leave out --memory.")
    # A new interpreter and no fork: of a fork's pages nobody could say whose they are.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_measure, load, run, arguments).result()


def _measure(load: Callable[..., Any], run: Callable[[Any], None], arguments: tuple[Any, ...]) -> int:
    before = _resident("VmRSS")
    loaded = load(*arguments)
    _RESET.write_text("5")  # sets the peak to what is resident now
    run(loaded)
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
