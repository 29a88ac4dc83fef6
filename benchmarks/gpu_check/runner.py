"""Run parts, each in a process of its own: what one does to the device or to torch is no other's trouble."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path

from benchmarks.gpu_check.part import FailedError, Found, Setup, SkippedError

SECONDS = 600.0  # for all parts together
_GRACE = 20.0  # seconds to end in, and to clean up, when all is said
_HERE = "benchmarks.gpu_check"
# Name -> module and function; what the later ones need the earlier ones leave.
PARTS: Mapping[str, tuple[str, str]] = {
    "logits_fp32": (f"{_HERE}.exactness", "logits_fp32"),
    "logits_bf16": (f"{_HERE}.exactness", "logits_bf16"),
    "masked_is_sheared": (f"{_HERE}.exactness", "masked_is_sheared"),
    "flash_attention_2": (f"{_HERE}.exactness", "flash_attention_2"),
    "divergence": (f"{_HERE}.speed", "divergence"),
    "step_135m": (f"{_HERE}.speed", "step_135m"),
    "step_1b": (f"{_HERE}.speed", "step_1b"),
    "plain": (f"{_HERE}.training", "plain"),
    "fsdp2": (f"{_HERE}.training", "fsdp2"),
    "fsdp1": (f"{_HERE}.training", "fsdp1"),
    "auto_microbatches": (f"{_HERE}.training", "auto_microbatches"),
    "resume": (f"{_HERE}.training", "resumed"),
    "compile": (f"{_HERE}.training", "compiled"),
}


@dataclass(frozen=True)
class Outcome:
    """How a part ended.

    Args:
        name: of the part.
        outcome: ``ok``, ``failed`` or ``skipped``.
        figure: what was found, or why there is nothing.
        seconds: that it took.
        values: for the JSON.
    """

    name: str
    outcome: str
    figure: str
    seconds: float
    values: Mapping[str, object]

    def line(self) -> str:
        """For people."""
        return f"{self.outcome:8}{self.name:18}{self.figure}  ({self.seconds:.0f} s)"


def run(
    names: Sequence[str], setup: Setup, parts: Mapping[str, tuple[str, str]] = PARTS, *, seconds: float = SECONDS
) -> Iterator[Outcome]:
    """Run parts in turn; what each writes goes into ``<folder>/<name>.log``.

    Args:
        names: of parts.
        setup: what they are given.
        parts: where they are.
        seconds: for all together; a part that is not done then is ended, and later ones do not begin.
    """
    # Libraries may ask for a GPU as they are imported, and a fork of a process that has could not use it.
    get = multiprocessing.get_context
    context = get("spawn") if setup.on_gpu else get("forkserver")
    context.set_forkserver_preload([module for module, _ in parts.values()])
    end = time.monotonic() + seconds
    for name in names:
        begin = time.monotonic()
        outcome, figure, values = _in_process(context, parts[name], setup, setup.folder / f"{name}.log", end - begin)
        yield Outcome(name, outcome, figure, time.monotonic() - begin, values)


def _in_process(
    context: SpawnContext | ForkServerContext, part: tuple[str, str], setup: Setup, log: Path, seconds: float
) -> tuple[str, str, Mapping[str, object]]:
    if seconds <= 0:
        return "failed", "not begun: the time for all parts is over", {}
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(part, setup, log, theirs))
    process.start()
    theirs.close()
    pid = process.pid
    assert pid is not None  # it is started
    try:
        if not ours.poll(seconds):
            return "failed", f"not done when the time for all parts was over; see {log}", {}
        result = ours.recv()
        process.join(_GRACE)
        return result
    except EOFError:
        process.join(_GRACE)
        return "failed", f"the process ended with exit code {process.exitcode}; see {log}", {}
    finally:
        with contextlib.suppress(ProcessLookupError):  # it has ended, and so has all that it started
            os.killpg(pid, signal.SIGKILL)
        process.kill()
        process.join()


def _child(part: tuple[str, str], setup: Setup, log: Path, connection: Connection) -> None:
    os.setsid()  # so that what it starts can be ended with it
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    module, function = part
    try:
        found: Found = getattr(importlib.import_module(module), function)(setup)
        result = ("ok", found.figure, dict(found.values))
    except SkippedError as reason:
        result = ("skipped", str(reason), {})
    except FailedError as reason:
        result = ("failed", str(reason), {})
    except BaseException as error:  # a part may fail in any way, and the others go on
        traceback.print_exc(file=sys.stderr)
        message = " ".join(str(error).split())
        result = ("failed", f"{type(error).__name__}: {message[:200]}; see {log}", {})
    sys.stderr.flush()
    connection.send(result)
