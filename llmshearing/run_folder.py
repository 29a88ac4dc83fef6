"""The folder of a run: can be written, and belongs to one run at a time."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from pathlib import Path
from typing import IO

from llmshearing.errors import InputError, naming
from llmshearing.storage import files_below, has_bucket, is_remote, split

log = logging.getLogger(__name__)

_held: dict[Path, IO[str]] = {}  # locks of this process, which it gives up where it ends


def folder_problem(save_folder: str) -> str | None:
    """Why a run cannot save there, with the remedy; ``None`` if it can. Writes nothing."""
    if "{" in save_folder:
        return f"save_folder is '{save_folder}'; write values of the recipe as ${{run_name}}, with a dollar sign."
    if is_remote(save_folder):
        return _address_problem(save_folder)
    path = Path(save_folder).absolute()
    try:
        there = next(above for above in (path, *path.parents) if above.exists())
        if not there.is_dir():
            return f"save_folder is '{save_folder}', but '{there}' is a file: choose another, or move that away."
        if not os.access(there, os.W_OK | os.X_OK):
            return f"save_folder is '{save_folder}', but '{there}' cannot be written: choose another."
    except OSError as error:
        return f"save_folder is '{save_folder}', which cannot be: {error.strerror}."
    return None


def _address_problem(save_folder: str) -> str | None:
    if save_folder.partition("://")[2].strip("/").count("/") < 2:  # the run's folder is the one above
        return f"save_folder is '{save_folder}'; give it two folders in the bucket at least, such as run/checkpoints."
    try:
        if has_bucket(save_folder):
            files_below(save_folder)
            return None
        scheme, bucket, _ = split(save_folder)
        return f"save_folder: there is no bucket '{scheme}://{bucket}'. Make it, or correct the name."
    except InputError as error:
        return f"save_folder: {error}"


def claim(run: Path) -> None:
    """Hold a run's folder until this process ends, however it ends; makes the folder.

    The lock is one of ``lockf``: a worker that outlives its killed run does not inherit it, so that the run can go on
    at once. Calling this again in one process is allowed.

    Raises:
        InputError: another process holds it.
    """
    path = (run / ".lock").absolute()
    if path in _held:
        return
    with naming(path):
        run.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read(200).strip() or "another process"
            file.close()
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise InputError(
                    f"'{run}' is in use by {holder}, which trains there. Wait for it or end it, or choose another "
                    "save_folder."
                ) from error
            log.warning("'%s' cannot be locked (%s): do not start this run twice.", run, error.strerror)
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    _held[path] = file
