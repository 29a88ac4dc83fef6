"""One run at a time in an output folder.

On a disk the claim is a lock that ends with the process, however that ends. An object store has no such thing: there it
is an object, ``claim.json``, that its owner writes anew every ``HEARTBEAT`` seconds, and that others take for abandoned
after ``LEASE`` seconds by the store's clock, or at once where they see that its process is gone.

What that cannot exclude: a run that is suspended, or cut off from the store, for longer than ``LEASE`` goes on beside
the one that took over, until its next heartbeat. Both write the same objects where they have the same input and
settings; where they have not, they write under different names until one publishes.
"""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmshearing import storage
from llmshearing.errors import InputError
from llmshearing.fileio import read_json
from llmshearing.storage import Place, join

#: Seconds between two signs of life, and without any until a claim is taken for abandoned.
HEARTBEAT = 20.0
LEASE = 120.0
#: Seconds in which the claims of two runs that begin at the same time both arrive.
SETTLING = 1.0


@contextmanager
def claimed(out: Place, work: Place) -> Iterator[Callable[[], None]]:
    """Hold the output folder; yields a function that raises where the claim was lost meanwhile.

    Raises:
        InputError: another run holds it, or it cannot be written.
    """
    if storage.is_remote(work):
        with _claimed_address(out, join(work, "claim.json")) as check:
            yield check
        return
    try:
        Path(work).mkdir(parents=True, exist_ok=True)
        lock = (Path(work) / "lock").open("w")
    except OSError as error:
        raise InputError(f"Cannot write '{out}': {error.strerror}.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"Another run is preparing '{out}'. Wait for it, or choose another OUT.") from error
        yield lambda: None


@contextmanager
def _claimed_address(out: Place, place: str) -> Iterator[Callable[[], None]]:
    owner = {"run": uuid.uuid4().hex, "host": socket.gethostname(), "process": os.getpid()}
    before = storage.info(place)
    earlier: dict[str, Any] = read_json(place) if before else {}
    storage.write_json(f"{place}.{owner['run']}", owner)  # asks the store for its time, and whether it can be written
    now = storage.info(f"{place}.{owner['run']}")
    storage.remove(f"{place}.{owner['run']}")
    assert now is not None
    if before and not _is_gone(earlier, socket.gethostname()):
        age = (now.mtime_ns - before.mtime_ns) / 1e9
        if age < LEASE:
            raise InputError(
                f"Another run is preparing '{out}': {earlier.get('host')}, {age:.0f} s ago. Wait for it, or choose "
                f"another OUT; if it was killed, begin again in {LEASE - age:.0f} s."
            )
    storage.write_json(place, owner)
    time.sleep(SETTLING)
    lost = threading.Event()

    def check() -> None:
        if lost.is_set():
            raise InputError(f"Another run has taken '{out}' over. Wait for it; the same command goes on from here.")

    def renew() -> None:
        if storage.info(place) is None or read_json(place) != owner:
            lost.set()
        else:
            storage.write_json(place, owner)

    renew()
    check()
    ended = threading.Event()

    def beat() -> None:
        while not lost.is_set() and not ended.wait(HEARTBEAT):
            try:
                renew()
            except InputError:  # the store is away, as it is for the work itself, which reports it
                continue

    heart = threading.Thread(target=beat, daemon=True)
    heart.start()
    try:
        yield check
    finally:
        ended.set()
        heart.join()
        if not lost.is_set():
            storage.remove(place)


def _is_gone(owner: dict[str, Any], host: str) -> bool:
    """Whether a claim is that of a process of this machine that has ended."""
    if owner.get("host") != host:
        return False
    try:
        os.kill(int(owner["process"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
