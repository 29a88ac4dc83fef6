"""Opening streaming's datasets one run at a time, with locks that lie where the memory does that they protect."""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import streaming.base.dataset as streaming_dataset
import streaming.base.shared.prefix as streaming_prefix
import torch
from filelock import FileLock, Timeout
from streaming.base import distributed as dist
from streaming.base.constant import LOCALS
from streaming.base.shared import SharedMemory

log = logging.getLogger(__name__)

# Where Linux has its shared memory: of one host or container, as the memory is. $TMPDIR may be one per job, so that its
# locks keep nobody out, or one for several nodes, so that they keep out whom the run waits for.
_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else "/tmp"
_NAME = re.compile(r"(\d{6})_(\w+)")  # of shared memory of streaming's
_TURN = 120  # seconds to wait for other runs that open data


def _locks() -> str:
    """The folder of this user's lock files on this host."""
    folder = os.path.join(_MEMORY, f"llmshearing-{os.getuid()}")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    return folder


@contextmanager
def opening(bounds: type) -> Iterator[None]:
    """Let one run at a time open data on this host, with ``bounds`` in the place of streaming's ``Spanner``.

    Streaming looks for an unused prefix for its shared memory and then takes it; another run in between takes the same
    one. All ranks of a run have to look while their leader has the turn. Whoever waited for too long goes on without
    one: taking the same memory is then an error of streaming's, not a silent mix-up, and far from likely.
    """
    lock = FileLock(os.path.join(_locks(), "opening.lock"))
    with process_group():
        try:
            if dist.get_local_rank() == 0:
                try:
                    lock.acquire(timeout=_TURN)
                except Timeout:
                    log.warning(
                        "Another run has held the lock file '%s' for %g s, as runs do while they open data. This one "
                        "goes on without it; should it fail now, see whether the other one hangs, and start again.",
                        *(lock.lock_file, _TURN),
                    )
            dist.barrier()
            with _in_place_of_streamings(bounds):
                yield
        finally:
            lock.release()


@contextmanager
def _in_place_of_streamings(bounds: type) -> Iterator[None]:
    """Give ``StreamingDataset.__init__`` our own of what it offers no other place to choose.

    Its ``Spanner`` lists the shard of every sample while it is built (8 GB for 10^9 samples). Its lock files lie in
    $TMPDIR; and a prefix that has some there is passed over, without a look at whether the run that has it uses the
    same cache. It finds none in ``_MEMORY`` itself. What it looked at of other runs it keeps open. And it looks for
    runs that use the same cache up to the first prefix without one, which a killed run may have left in the midst.
    """
    changes: list[tuple[Any, str, Any]] = [
        (streaming_dataset, "Spanner", bounds),
        (streaming_dataset, "gettempdir", _locks),
        (streaming_prefix, "gettempdir", lambda: _MEMORY),
        (streaming_prefix, "SharedMemory", _memory),
        (streaming_prefix, "_each_prefix_int", _prefixes),
    ]
    saved = [(module, name, vars(module)[name]) for module, name, _ in changes]
    for module, name, value in changes:
        vars(module)[name] = value
    try:
        yield
    finally:
        for module, name, value in saved:
            vars(module)[name] = value


def _prefixes() -> Iterator[int]:
    """The numbers of other runs, then those that nobody has."""
    found = [match for name in sorted(os.listdir(_MEMORY)) if (match := _NAME.fullmatch(name)) is not None]
    for match in found:
        if match[2] == LOCALS and os.path.exists(os.path.join(_MEMORY, match[0])):  # runs may end meanwhile
            yield int(match[1])
    yield from itertools.count(int(found[-1][1]) + 1 if found else 0)


def _memory(name: str, create: bool, size: int = 0) -> SharedMemory:
    """Shared memory that is closed with its last reference; ``ShardedDataset`` closes what it made itself."""
    return SharedMemory(name, create, size, auto_cleanup=create)


@contextmanager
def process_group() -> Iterator[None]:
    """Make sure that the ranks can wait for each other, as streaming does where the trainer is yet to come."""
    initialized_here = dist.maybe_init_dist()
    try:
        yield
    finally:
        if initialized_here:
            torch.distributed.destroy_process_group()
