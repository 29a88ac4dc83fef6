"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmshearing.errors import InputError


def write_text(path: str | Path, text: str) -> None:
    """Replace ``path`` by ``text`` in one step, creating its folder where needed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would lock out the users who share a run folder
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def check_file_can_be_written(path: str | Path) -> None:
    """Find out before the work whether :func:`write_text` could write ``path`` after it; leaves nothing behind.

    Raises:
        InputError: it could not, or there is something else than a file.
    """
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
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Parse a JSON file.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"There is no file '{path}'.") from error
    except ValueError as error:
        raise InputError(f"'{path}' is not valid JSON: {error}.") from error


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

    Args:
        path: the folder to create.
        overwrite: replace an existing ``path``; the old one goes only when the new one is complete.

    Raises:
        InputError: ``path`` exists and ``overwrite`` is false, or its parent cannot be written.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise InputError(f"'{path}' exists already. Choose another place, or pass --overwrite to replace it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise InputError(f"Cannot write '{path}': {error.strerror or error}.") from error
    try:
        os.chmod(temporary, 0o755)
        yield temporary
        if path.is_dir():
            retired = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            os.replace(path, retired)
            os.replace(temporary, path)
            shutil.rmtree(retired)
        else:
            os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
