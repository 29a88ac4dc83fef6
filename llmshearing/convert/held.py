"""Files that stay open from first to last: what is read is of one checkpoint, whatever becomes of its name."""

from __future__ import annotations

import io
import os
import resource
import stat
from pathlib import Path
from typing import Any

from llmshearing.errors import InputError


class HeldFile:
    """A file that was opened once. Its place may be pruned or taken by another file; the content read is still its own.

    Args:
        path: for messages, and to open it.
        folder: descriptor of the open folder in which to look for the file's name, instead of following ``path``.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """

    def __init__(self, path: Path, *, folder: int | None = None) -> None:
        self.path = path

        def opener(name: str, flags: int) -> int:  # not blocking: opening a pipe would wait for its writer
            return os.open(name, flags | os.O_NONBLOCK, dir_fd=folder)

        try:
            self._file = open(path if folder is None else path.name, "rb", buffering=0, opener=opener)  # noqa: SIM115
        except OSError as error:
            raise unreadable(path, error) from error
        self._found = os.fstat(self._file.fileno())
        if not stat.S_ISREG(self._found.st_mode):
            self.close()
            raise InputError(f"'{path}' is not a file.")

    @property
    def size(self) -> int:
        """Bytes when it was opened."""
        return self._found.st_size

    def read_some(self, data: memoryview, offset: int) -> int:
        """Fill ``data`` from ``offset`` on as far as one call to the system does; returns the number of bytes."""
        return os.preadv(self._file.fileno(), [data], offset) if len(data) else 0

    def read_into(self, data: memoryview, offset: int, what: str) -> None:
        """Fill ``data`` with the bytes from ``offset`` on.

        Raises:
            InputError: the file ends before, within ``what``; or it cannot be read.
        """
        while len(data):
            try:
                count = self.read_some(data, offset)
            except OSError as error:
                raise unreadable(self.path, error) from error
            if not count:
                raise InputError(f"'{self.path}' ends within {what}: the file is truncated.")
            data, offset = data[count:], offset + count

    def check_unchanged(self) -> None:
        """Refuse a file that was written to since it was opened.

        Raises:
            InputError: it was.
        """
        now = os.fstat(self._file.fileno())
        if (now.st_size, now.st_mtime_ns) != (self._found.st_size, self._found.st_mtime_ns):
            raise InputError(f"'{self.path}' was written to while it was read. Convert it again when that has ended.")

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


class Slice(io.RawIOBase):
    """Part of a held file, as a file of its own; slices do not share a position."""

    def __init__(self, file: HeldFile, offset: int, length: int) -> None:
        self.file, self.offset, self.length, self._position = file, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.length}[whence]
        if base + position < 0:
            raise OSError("a place before the beginning")
        self._position = base + position
        return self._position

    def readinto(self, buffer: Any) -> int:
        rest = max(0, self.length - self._position)
        count = self.file.read_some(memoryview(buffer).cast("B")[:rest], self.offset + self._position)
        self._position += count
        return count


def allow_open_files(count: int) -> None:
    """Let this process have ``count`` more files open than usual, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 256  # what the process has open besides
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )


def unreadable(path: Path, error: OSError) -> InputError:
    """The error for what the system does not let us read."""
    return InputError(f"'{path}' cannot be read: {error.strerror or error}.")
