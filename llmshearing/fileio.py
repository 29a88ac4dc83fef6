"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from llmshearing.errors import InputError

log = logging.getLogger(__name__)


@contextmanager
def new_file(path: str | Path) -> Iterator[BinaryIO]:
    """Yield a file that replaces ``path`` in one step when the block succeeds; its folder is made where needed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would lock out the users who share a run folder
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Replace ``path`` by ``text`` in one step, creating its folder where needed."""
    with new_file(path) as file:
        file.write(text.encode())


def check_file_can_be_written(path: str | Path) -> None:
    """Find out before the work whether :func:`new_file` could write ``path`` after it; leaves nothing behind.

    Raises:
        InputError: it could not, or there is something else than a file.
    """
    refuse_address(path, "this file is written", "Give a path, and copy it there afterwards.")
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"'{path}' is no file and cannot be replaced by one. Choose another place.")
        # Whether files can be made in a folder is known only by making one.
        with tempfile.TemporaryFile(dir=next(folder for folder in path.absolute().parents if folder.exists())):
            pass
    except OSError as error:
        raise InputError(f"Cannot write '{path}': {error.strerror}. Choose another place.") from error


def write_json(path: str | Path, value: Any) -> None:
    """Replace ``path`` by ``value`` as indented JSON in one step; NaN and infinity are refused."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """``value`` as indented JSON; NaN and infinity are refused."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def give_json(path: str | Path | None, value: Any) -> None:
    """Write what a command has found to ``path``, or to stdout where there is none or it fails at the end.

    Raises:
        InputError: ``path`` cannot be written.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    if path is None:
        sys.stdout.write(text)
        return
    try:
        write_json(path, value)
    except OSError as error:
        sys.stdout.write(text)
        raise InputError(f"Cannot write '{path}': {error.strerror}. The result is on stdout.") from error


def read_json(path: str | Path) -> Any:
    """Parse a JSON file of this machine, or of an object store.

    Raises:
        InputError: the file is missing, cannot be read or is not JSON.
    """
    try:
        return json.loads(_read(path))
    except FileNotFoundError as error:
        raise InputError(f"There is no file '{path}'.") from error
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"'{path}' is not valid JSON: {error}.") from error


def _read(path: str | Path) -> str:
    if "://" not in str(path):
        return Path(path).read_text(encoding="utf-8")
    from llmshearing import storage  # which needs this module

    if storage.is_remote(path) and storage.info(path) is None:
        raise FileNotFoundError
    return storage.read_bytes(path).decode()


def refuse_address(path: str | Path, what: str, remedy: str) -> None:
    """Refuse an address where only a path will do; as a path it would be one of a folder called ``s3:``.

    Raises:
        InputError: it is one.
    """
    if "://" in str(path):
        raise InputError(f"'{path}' is an address, but {what} on a disk of this machine. {remedy}")


def digest_of_files(paths: Iterable[Path]) -> str:
    """A digest of the names and the contents of files, in this order."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        digest.update(f"{path.name}\0".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def files_below(folder: str | Path) -> list[Path]:
    """The files anywhere below ``folder``, sorted.

    Folders may come and go meanwhile, as in a run that is under way, which ends ``Path.rglob`` with an error.
    """
    return sorted(Path(place) / name for place, _, names in os.walk(folder) for name in names)


def remove(path: str | Path) -> None:
    """Delete a file or a folder with all it holds; nothing happens where there is none."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` to fill; it becomes ``path`` only when the block succeeds.

    What else appears at ``path`` meanwhile is never lost: it stays, and the new folder is given up.

    Args:
        path: the folder to create. Where it is a link, what it points to is created or replaced, and the link stays.
        overwrite: replace an existing ``path``; the old one goes only when the new one is complete.

    Raises:
        InputError: ``path`` exists and ``overwrite`` is false or it is a file; or it cannot be written.
    """
    path = check_new_folder(path, overwrite=overwrite)
    made: list[Path] = []
    try:
        _make_parents(path, made)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        _remove_empty(made)
        raise cannot_write(path, error) from error
    try:
        os.chmod(temporary, 0o755)
        yield temporary
        _put(temporary, path, overwrite=overwrite)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        _remove_empty(made)
        raise


def check_new_folder(path: str | Path, *, overwrite: bool) -> Path:
    """Refuse what :func:`new_folder` would, before any work; returns the place itself where ``path`` is a link.

    Raises:
        InputError: as :func:`new_folder`.
    """
    if not str(path):
        raise InputError("The folder to create is ''; give it a name.")
    refuse_address(path, "this folder is created", "Give a path, and copy it there afterwards.")
    try:
        found = Path(path).resolve()
        if found.is_dir():
            if not overwrite:
                raise InputError(f"'{path}' exists already. Choose another place, or pass --overwrite to replace it.")
            if found in (current := Path.cwd(), *current.parents):
                raise InputError(f"'{path}' is the folder that the command runs in, or above it. Choose another place.")
        elif found.exists():
            raise InputError(f"'{path}' exists already and is not a folder. Choose another place.")
        else:
            # Whether files can be made there is known only by making one.
            os.rmdir(tempfile.mkdtemp(dir=next(folder for folder in found.parents if folder.exists())))
    except InputError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links; a character that no path has
        raise cannot_write(path, error) from error
    return found


def cannot_write(path: str | Path, error: Exception) -> InputError:
    """The error for a place where the system does not let us write."""
    return InputError(f"Cannot write '{path}': {getattr(error, 'strerror', None) or error}. Nothing was left behind.")


def _make_parents(path: Path, made: list[Path]) -> None:
    """Create the folders above ``path`` that are missing; those that were go to ``made``, the innermost last."""
    for folder in reversed(path.parents):
        if not folder.exists():
            folder.mkdir(exist_ok=True)
            made.append(folder)


def _remove_empty(folders: list[Path]) -> None:
    for folder in reversed(folders):
        with suppress(OSError):  # something else is in it by now
            folder.rmdir()


def _put(temporary: Path, path: Path, *, overwrite: bool) -> None:
    """Let a folder become ``path``; the system refuses to rename it to a folder that holds anything, or to a file."""
    retired = None
    if overwrite and path.is_dir():
        retired = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
        try:
            os.replace(path, retired)
        except OSError:
            retired.rmdir()
            raise
    try:
        os.rename(temporary, path)
    except OSError as error:
        if retired is not None:
            os.rename(retired, path)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise InputError(
                f"'{path}' appeared while the work was done, and is left as it is. Choose another place."
            ) from error
        raise
    if retired is not None:
        shutil.rmtree(retired, ignore_errors=True)
        if retired.exists():
            log.warning("'%s', which '%s' replaced, could not be removed.", retired, path)
