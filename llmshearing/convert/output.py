"""The folder that a conversion writes: complete or not there, whatever ends the process."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from safetensors import SafetensorError

from llmshearing import fileio
from llmshearing.copies import publish_folder
from llmshearing.errors import InputError
from llmshearing.fileio import cannot_write, check_new_folder, new_folder
from llmshearing.storage import files_below, info, is_remote

log = logging.getLogger(__name__)

_CONFIG = "config.json"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def check_output(out: str | Path, *, overwrite: bool, source: str | Path) -> Path | str:
    """Refuse a place for the output before any work; returns a path with links followed, or the address.

    Raises:
        InputError: it exists and ``overwrite`` is false, or it holds anything but a model; it is ``source``, what is to
            be converted, or holds it; it cannot be written.
    """
    if is_remote(out):
        return _check_address(str(out).rstrip("/"), overwrite=overwrite, source=str(source).rstrip("/"))
    found = check_new_folder(out, overwrite=overwrite)
    if found.is_dir():
        read = Path(source).resolve()
        if found in (read, *read.parents):
            raise InputError(f"'{out}' is or holds '{source}', which is to be read. Choose another place.")
        _check_replaceable(found)
    return found


def _check_address(out: str, *, overwrite: bool, source: str) -> str:
    """The same of an address."""
    there = files_below(out)
    if info(out) is not None:
        raise InputError(f"'{out}' exists already and is not a folder. Choose another place.")
    if there and not overwrite:
        raise InputError(f"'{out}' exists already. Choose another place, or pass --overwrite to replace it.")
    if there and f"{source}/".startswith(f"{out}/"):
        raise InputError(f"'{out}' is or holds '{source}', which is to be read. Choose another place.")
    if there:
        _check_files_replaceable(out, there)
    return out


@contextmanager
def output_folder(out: Path | str, *, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary sibling of ``out`` to fill; it becomes ``out`` only when the block succeeds.

    A signal that ends the process does so when the temporary folder is gone, or has become ``out``. What goes to an
    address is made in a temporary folder of this machine, and then copied, ``config.json`` last.

    Args:
        out: the place, from :func:`check_output`.
        overwrite: replace the model that is there.

    Raises:
        InputError: it cannot be written, or something else appeared there.
    """
    signals = _Signals()
    if isinstance(out, str):
        with signals.held(), tempfile.TemporaryDirectory(prefix="llmshearing-") as temporary, signals.raised():
            folder = Path(temporary)
            yield folder
            publish_folder(folder, out, last=_CONFIG)
        return
    try:
        _remove_leftovers(out)
        with signals.held(), ExitStack() as lock, new_folder(out, overwrite=overwrite) as folder:
            lock.callback(os.close, _lock(folder)[0])
            with signals.raised():
                yield folder
                for path in fileio.files_below(folder):
                    path.chmod(0o644)  # safetensors' 0600 would lock out the users who share a run folder
            if overwrite and out.is_dir():
                _check_replaceable(out)  # as it is by now
    except (OSError, SafetensorError) as error:  # reading raises InputError, so this is about writing
        raise cannot_write(out, error) from error


def _check_replaceable(folder: Path) -> None:
    """Refuse to replace a folder unless it is empty, or a model and nothing but files."""
    if not any(folder.iterdir()):
        return
    below = next((path.name for path in sorted(folder.iterdir()) if path.is_dir()), None)
    if below is not None:
        raise InputError(f"'{folder}' holds the folder '{below}', so it is not replaced. Choose another place.")
    _check_files_replaceable(folder, [path.name for path in folder.iterdir()])


def _check_files_replaceable(folder: Path | str, names: Iterable[str]) -> None:
    names = set(names)
    below = next((name.partition("/")[0] for name in sorted(names) if "/" in name), None)
    if below is not None:
        raise InputError(f"'{folder}' holds the folder '{below}', so it is not replaced. Choose another place.")
    if _CONFIG not in names or not any(name.endswith((".safetensors", ".bin")) for name in names):
        raise InputError(
            f"'{folder}' is not a Hugging Face model (config.json and weights), so it is not replaced. Choose another "
            "place."
        )


class _Signals:
    """Signals that end the process, put off while they would leave something behind."""

    def __init__(self) -> None:
        self._came: signal.Signals | None = None
        self._raises = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Put signals off until the end of the block; then they do what they did before."""
        if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
            yield
            return
        handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        ignored = (signal.SIG_IGN, None)  # as nohup does with SIGHUP; None: not set from Python
        handlers = {number: handler for number, handler in handlers.items() if handler not in ignored}
        for number in handlers:
            signal.signal(number, self._handle)
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            if self._came is not None:
                os.kill(os.getpid(), self._came)

    @contextmanager
    def raised(self) -> Iterator[None]:
        """End the block, by SystemExit, where a signal comes or was put off."""
        self._raises = True
        try:
            if self._came is not None:
                self._stop(self._came)
            yield
        finally:
            self._raises = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._came = signal.Signals(number)
        if self._raises:
            self._stop(self._came)

    def _stop(self, number: signal.Signals) -> None:
        self._raises = False  # a second signal must not end the cleaning up
        log.warning("Stopped by %s. Nothing is left behind.", number.name)
        raise SystemExit(128 + number)


def _lock(folder: Path) -> tuple[int, bool]:
    """A descriptor of a folder, and whether it now has the folder's lock. Locks go with the process that holds them."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another process has it, or this file system has no locks
        return descriptor, False
    return descriptor, True


def _remove_leftovers(out: Path) -> None:
    """Remove what killed conversions to ``out`` left beside it; what may be of use is only named."""
    temporary = re.compile(rf"\.{re.escape(out.name)}\.(old\.)?[a-z0-9_]{{8}}")  # as new_folder names them
    for folder in sorted(out.parent.iterdir()) if out.parent.is_dir() else []:
        match = temporary.fullmatch(folder.name)
        # Weights are written first, after the folder is locked; without them it is new, or somebody else's.
        if match is None or next(folder.glob("model*.safetensors"), None) is None:
            continue
        if match[1]:
            log.warning("'%s' was '%s' when a conversion was killed. Remove it, or move it back.", folder, out)
            continue
        try:
            descriptor, locked = _lock(folder)
        except FileNotFoundError:  # another conversion removes it too
            continue
        if locked:
            shutil.rmtree(folder, ignore_errors=True)
            log.warning("Removed '%s', left by a conversion that was killed.", folder)
        else:
            log.warning("'%s' is of a conversion that still runs, or was killed where there are no locks.", folder)
        os.close(descriptor)
