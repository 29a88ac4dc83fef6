"""Working copies on this machine of what lies in an object store, with the space for them checked before.

They are made below ``$TMPDIR`` and go when they are no longer needed.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from llmshearing import storage
from llmshearing.errors import InputError
from llmshearing.storage import Info, Place

log = logging.getLogger(__name__)

LINK = ".symlink"  # of an object that Composer writes in place of a link: the key of what it stands for


def name_of(place: Place) -> str:
    """The last part of a place."""
    return str(place).rstrip("/").rpartition("/")[2]


def parent_of(place: Place) -> str:
    """The folder that a place is in."""
    return str(place).rstrip("/").rpartition("/")[0]


def followed(address: str) -> str:
    """An address, or that which Composer's link object beside it stands for."""
    for link in (address, f"{address}{LINK}"):
        if link.endswith(LINK) and storage.info(link) is not None:
            key = storage.read_bytes(link).decode(errors="replace").strip()
            return storage.join(parent_of(address), name_of(key))  # which still holds where the folder was copied to
    return address


def fetch(address: str, target: Path, *, wanted: Callable[[str], bool] = lambda _: True) -> None:
    """Copy a file or folder of an object store to this machine.

    Args:
        address: of it.
        target: its path here.
        wanted: which files of a folder, by their names below it.

    Raises:
        InputError: there is no such thing at the address, it cannot be read, or there is no room for it.
    """
    files = _files(address)
    if not files:
        raise InputError(f"There is nothing at '{address}'. Check the address.")
    files = {name: known for name, known in files.items() if wanted(name)}
    check_space(target, sum(known.bytes for known in files.values()), address)
    for name in files:
        storage.download(storage.join(address, name) if name else address, target / name if name else target)


@contextmanager
def local_copy(place: Place, *, fetching: Callable[[str, Path], None] = fetch) -> Iterator[Path]:
    """A file or folder as a path: itself where it is on this machine, or a copy that is gone after the block.

    What goes wrong within the block names the address, not the copy.

    Args:
        place: the file or folder.
        fetching: what copies an address to a path.

    Raises:
        InputError: there is no such thing at the address, it cannot be read, or there is no room for it.
    """
    if not storage.is_remote(place):
        yield Path(place)
        return
    with tempfile.TemporaryDirectory(prefix="llmshearing-") as temporary:
        copy = Path(temporary) / name_of(place)
        try:
            fetching(str(place), copy)
            yield copy
        except InputError as error:
            raise type(error)(str(error).replace(str(copy), str(place).rstrip("/"))) from error


def check_space(target: Path, needed: int, what: Place) -> None:
    """Say how much is fetched, and refuse where the disk has no room for it.

    Raises:
        InputError: there is less.
    """
    there = next(folder for folder in target.absolute().parents if folder.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise InputError(
            f"'{what}' takes {needed / 1e9:.3g} GB, but '{there}' has {free / 1e9:.3g} GB left. Set TMPDIR to a folder "
            "with more room."
        )
    if needed > 1 << 30:
        log.info("Fetching '%s' to '%s': %.3g GB.", what, there, needed / 1e9)


def _files(address: str) -> Mapping[str, Info]:
    """The files at an address: of a single one the name is empty."""
    known = storage.info(address)
    return storage.files_below(address) if known is None else {"": known}


def publish_folder(folder: Path, address: str, *, last: str) -> None:
    """Let an object store's folder hold exactly the files of ``folder``, of which ``last`` says that it is complete.

    That goes first and comes last: whoever looks meanwhile, or after a kill, finds a folder without it.
    """
    storage.remove(storage.join(address, last))
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for name in sorted(names, key=lambda name: name == last):
        if name == last:
            for old in set(storage.files_below(address)) - set(names):
                storage.remove(storage.join(address, old))
        storage.upload(folder / name, storage.join(address, name))
