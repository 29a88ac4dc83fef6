"""Which checkpoint a run goes on from, and what one that was killed while it wrote leaves behind."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from llmshearing.convert.commands import open_checkpoint
from llmshearing.errors import IncompleteError, InputError, UntrustedError

log = logging.getLogger(__name__)

LATEST = "latest-rank0.pt"
_CHECKPOINT = re.compile(r"ep(\d+)-ba(\d+)(-rank0\.pt)?")
_REMOVED = ".removed-"


def checkpoints(folder: Path) -> list[Path]:
    """A folder's checkpoints, newest first: files ``ep0-ba30-rank0.pt``, and folders ``ep0-ba30`` of sharded ones."""
    names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    return [folder / name for name in newest_first(names)]


def newest_first(names: Iterable[str]) -> list[str]:
    """Those of some names that are of checkpoints, the newest first."""
    found = [(int(match[1]), int(match[2]), name) for name in names if (match := _CHECKPOINT.fullmatch(name))]
    return [name for _, _, name in sorted(found, reverse=True)]


def batch_of(checkpoint: Path) -> int:
    """The batch after which a checkpoint of :func:`checkpoints` was saved."""
    return int(checkpoint.name.split("-")[1][2:])


def newest_checkpoint(folder: Path, *, most: int | None = None) -> Path | None:
    """The newest whole checkpoint, with ``latest-rank0.pt`` linked to it; ``None`` where there is none.

    Composer links to a checkpoint once it is whole, and the kill may come at any moment: while the file is written,
    before the link, or between the old link and the new. So what is whole is told from the checkpoints themselves.
    What is newer and was never finished is removed, since Composer refuses to train beside it. Two processes that do
    this at once, as those of nodes that share a disk, come to the same result and do not disturb each other.

    Args:
        folder: where the run saves.
        most: batches that the run has trained on: what is beyond is of an earlier run, which it writes over. ``None``:
            there is none.

    Raises:
        InputError: the newest one would have to run code to be read, or files of it are on another disk.
    """
    for leftover in folder.glob(f"{_REMOVED}*"):
        _delete(leftover)
    latest = folder / LATEST
    if latest.is_file() and not latest.is_symlink():  # copied without its links
        return latest
    for path in checkpoints(folder):
        if (most is None or batch_of(path) <= most) and _is_whole(path):
            _link(latest, path)
            return path
    if latest.is_symlink():
        log.warning("Removing the link '%s': its checkpoint '%s' is not there.", latest, os.readlink(latest))
        latest.unlink(missing_ok=True)
    return None


def _is_whole(path: Path) -> bool:
    """Whether a checkpoint can be opened; one that was never finished is removed, a damaged one renamed."""
    try:
        if path.is_dir():
            finished = (path / ".metadata").exists()  # which is written last
        else:
            with path.open("rb") as file:  # what cannot be read must not be taken for unfinished
                file.read(1)
                finished = zipfile.is_zipfile(file)  # the directory of a zip file lies at its end
        if finished:
            with open_checkpoint(path):
                return True
    except FileNotFoundError:  # another process removed it
        return False
    except (UntrustedError, IncompleteError):  # what other nodes have of it is not damaged
        raise
    except InputError as error:
        aside = path.with_name(f"damaged-{secrets.token_hex(4)}-{path.name}")
        log.warning("'%s' is damaged, and now called '%s': %s", path, aside.name, error)
        _move(path, aside)
        return False
    log.warning("Removing '%s': the run ended while it was written.", path)
    removed = path.with_name(f"{_REMOVED}{secrets.token_hex(4)}-{path.name}")
    _move(path, removed)  # at once: nobody finds it half removed
    _delete(removed)
    return False


def _move(path: Path, to: Path) -> None:
    """Rename, unless another process has."""
    with suppress(FileNotFoundError):
        os.replace(path, to)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _link(latest: Path, path: Path) -> None:
    if latest.is_symlink() and os.readlink(latest) == path.name:
        return
    log.warning("'%s' now links to '%s', the newest whole checkpoint.", latest, path.name)
    link = latest.with_name(f".{latest.name}-{secrets.token_hex(4)}")
    os.symlink(path.name, link)
    os.replace(link, latest)
