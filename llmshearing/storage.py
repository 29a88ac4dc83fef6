"""Files by path or by address: on a disk, or in an object store (``s3://``, ``gs://``), through pyarrow's file systems.

A path is a ``Path``, or a string without ``scheme://``. Whatever is written appears whole or not at all: on a disk by
renaming, in an object store because an object is there only once all of it has arrived.

Credentials and endpoints are the usual ones of each store: for S3 the environment, ``~/.aws`` or the machine's role,
and ``S3_ENDPOINT_URL`` for another service than Amazon's, as streaming and Composer read it, too; for Google
``GOOGLE_APPLICATION_CREDENTIALS`` or the machine's account.

What goes wrong with an address is an :class:`InputError` that names it; with a path, an ``OSError``.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from llmshearing import fileio
from llmshearing.errors import InputError
from llmshearing.fileio import new_file

#: A place: a path of this machine, or an address.
Place = str | os.PathLike[str]

SCHEMES = ("s3", "gs")
#: Attempts at each request, with growing waits between them: a store that is away for a minute is waited for.
ATTEMPTS = 10
#: Bytes that are copied at a time.
PIECE = 1 << 22
_DENIED = ("ACCESS_DENIED", "403", "401", "credentials", "PermissionDenied", "anonymous")
_CREDENTIALS = {
    "s3": "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
}


@dataclass(frozen=True)
class Info:
    """What a store knows of a file: ``bytes``, and when it was last written, in ns since the epoch."""

    bytes: int
    mtime_ns: int


def is_remote(place: Place) -> bool:
    """Whether a place is an address rather than a path.

    Raises:
        InputError: it is an address of a kind that is not known.
    """
    scheme, separator, _ = os.fspath(place).partition("://")
    if not separator:
        return False
    if scheme not in SCHEMES:
        raise InputError(
            f"'{place}' begins with {scheme}://, but only {', '.join(f'{s}://' for s in SCHEMES)} are known."
        )
    return True


def split(address: Place) -> tuple[str, str, str]:
    """Scheme, bucket and key of an address. A key may have what a URL has not, such as ``c#/what?.txt``."""
    scheme, _, rest = os.fspath(address).partition("://")
    bucket, _, key = rest.partition("/")
    return scheme, bucket, key


def join(place: Place, *names: str) -> str:
    """A place below another one."""
    return "/".join((os.fspath(place).rstrip("/"), *names))


def info(place: Place) -> Info | None:
    """Size and time of a file, or None where there is none.

    Raises:
        InputError: the store cannot be asked.
    """
    with reporting(place):
        if not is_remote(place):
            path = Path(place)
            stat = path.stat() if path.is_file() else None
            return Info(stat.st_size, stat.st_mtime_ns) if stat else None
        system, key = _resolve(place)
        found = system.get_file_info(key)
        return Info(found.size, found.mtime_ns or 0) if found.is_file else None


def has_bucket(address: str) -> bool:
    """Whether the bucket of an address is there.

    Raises:
        InputError: the store cannot be asked, or does not say so to everybody.
    """
    with reporting(address):
        system, key = _resolve(address)
        return bool(system.get_file_info(key.partition("/")[0]).type.value)


def files_below(place: Place) -> dict[str, Info]:
    """The files anywhere below a folder, by their names relative to it, sorted; empty where there is no such folder.

    Raises:
        InputError: the store cannot be asked.
    """
    with reporting(place):
        if not is_remote(place):
            root = Path(place)
            paths = sorted(
                Path(folder) / name for folder, _, names in os.walk(root, followlinks=True) for name in names
            )
            found = {path.relative_to(root).as_posix(): info(path) for path in paths}
            return {name: known for name, known in sorted(found.items()) if known is not None}
        from pyarrow.fs import FileSelector

        system, key = _resolve(place)
        key = key.rstrip("/")
        infos = system.get_file_info(FileSelector(key, recursive=True, allow_not_found=True))
        files = {entry.path[len(key) + 1 :]: Info(entry.size, entry.mtime_ns or 0) for entry in infos if entry.is_file}
        return dict(sorted(files.items()))


def open_input(place: Place) -> Any:
    """A file to read at random places: a ``pyarrow.NativeFile``, with ``read``, ``seek`` and ``size``.

    Raises:
        InputError: it is not there or cannot be read.
    """
    with reporting(place):
        if not is_remote(place):
            import pyarrow

            return pyarrow.OSFile(os.fspath(place))
        system, key = _resolve(place)
        return system.open_input_file(key)


def read_bytes(place: Place) -> bytes:
    """All of a file.

    Raises:
        InputError: it is not there, cannot be read, or ends before its size.
    """
    with open_input(place) as file, reporting(place):
        data: bytes = file.read()
        if len(data) != file.size():
            raise OSError(f"only {len(data)} of its {file.size()} bytes came")
        return data


def write_bytes(place: Place, data: bytes) -> None:
    """Replace a file by ``data`` in one step.

    Raises:
        InputError: it cannot be written.
    """
    with reporting(place), tempfile.SpooledTemporaryFile(max_size=1 << 26) as source:
        source.write(data)
        source.seek(0)
        _write(source, place)


def upload(source: Path, place: Place) -> None:
    """Copy a file of this machine to a place, in one step.

    Raises:
        InputError: it cannot be written there.
    """
    with reporting(place), source.open("rb") as file:
        _write(file, place)


def download(place: Place, target: Path, parts: Iterable[tuple[int, int]] | None = None) -> None:
    """Copy a file from a place to this machine, in one step.

    Args:
        place: the file.
        target: its path here.
        parts: what to copy of it, (begin, end) in bytes; the rest of the file are holes. ``None``: all.

    Raises:
        InputError: it is not there, cannot be read, or ends before its size.
    """
    with open_input(place) as source, reporting(place), new_file(target) as file:
        for begin, end in [(0, source.size())] if parts is None else parts:
            source.seek(begin)
            file.seek(begin)
            while (missing := end - file.tell()) > 0:
                if not (piece := source.read(min(missing, PIECE))):
                    raise OSError(f"only {file.tell()} of its {source.size()} bytes came")
                file.write(piece)
        file.truncate(source.size())


def copy(place: Place, target: Place) -> None:
    """Copy a file from a place to another one of the same disk or store, in one step.

    Raises:
        InputError: it is not there, or cannot be written there.
    """
    with reporting(target):
        if not is_remote(target):
            upload(Path(place), target)
        else:
            system, key = _resolve(place)
            system.copy_file(key, _resolve(target)[1])


def entity_tag(place: Place) -> str | None:
    """What a store calls the content of a file (its ``ETag``), or None where it does not; equal tags, equal content."""
    if not is_remote(place):
        return None
    with open_input(place) as file, reporting(place):
        found: dict[str, bytes] = file.metadata() or {}
        return next((value.decode().strip('"') for name, value in found.items() if name.lower() == "etag"), None)


def write_json(place: Place, value: Any) -> None:
    """Replace a file by ``value`` as indented JSON in one step; NaN and infinity are refused."""
    write_bytes(place, fileio.json_text(value).encode())


def remove(place: Place) -> None:
    """Delete a file, or a folder with all that is below it; nothing happens where there is neither.

    Raises:
        InputError: the store does not allow it.
    """
    with reporting(place):
        if not is_remote(place):
            fileio.remove(os.fspath(place))
            return
        system, key = _resolve(place)
        if system.get_file_info(key).is_file:
            system.delete_file(key)
        with suppress(FileNotFoundError):  # there is no such folder
            system.delete_dir(key.rstrip("/"))


@contextmanager
def reporting(place: Place) -> Iterator[None]:
    """Turn what a store's client raises, an ``OSError`` or one of pyarrow's, into one line that names the address.

    Raises:
        InputError: in place of it.
    """
    try:
        yield
    except OSError as error:
        if not is_remote(place):
            raise
        reason = " ".join(str(error).split())
        raise InputError(f"'{place}' cannot be reached: {reason}. {_remedy(place, reason)}") from error


def _remedy(place: Place, reason: str) -> str:
    if any(sign in reason for sign in _DENIED):
        return f"Check that {_CREDENTIALS[split(place)[0]]} may read and write there."
    return "Check the address and the network; the same command goes on from here."


def _write(source: Any, place: Place) -> None:
    """Copy a stream; what fails on the way leaves nothing at ``place``."""
    if not is_remote(place):
        with new_file(os.fspath(place)) as file:
            shutil.copyfileobj(source, file, PIECE)
        return
    system, key = _resolve(place)
    stream = system.open_output_stream(key, compression=None)  # or Arrow compresses what is called *.gz once more
    # Not in a with block: leaving one closes the stream, and an object that is closed early is complete for the store.
    while piece := source.read(PIECE):
        stream.write(piece)
    stream.close()


def _resolve(place: Place) -> tuple[Any, str]:
    """The file system of an address, and what the place is called there."""
    scheme, bucket, _ = split(place)
    system = _file_system(scheme, bucket, os.environ.get("S3_ENDPOINT_URL"), ATTEMPTS)
    return system, os.fspath(place).removeprefix(f"{scheme}://")


@lru_cache
def _file_system(scheme: str, bucket: str, endpoint: str | None, attempts: int) -> Any:
    from pyarrow import fs

    if scheme == "gs":
        return fs.GcsFileSystem()
    retries = fs.AwsStandardS3RetryStrategy(max_attempts=attempts)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint is None and region is None:
        region = fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(endpoint_override=endpoint, region=region or "us-east-1", retry_strategy=retries)
