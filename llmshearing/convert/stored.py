"""Tensors that stay on disk: where their rows lie, and reading some of them at a time."""

from __future__ import annotations

import datetime
import io
import math
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from llmshearing.errors import InputError, UntrustedError

# What a Composer checkpoint holds besides tensors and plain types: times, versions and numpy's random state.
_reconstruct = np._core.multiarray._reconstruct  # type: ignore[attr-defined]
_HARMLESS: list[Any] = [
    torch.torch_version.TorchVersion,
    datetime.timedelta,
    np.dtype,
    np.ndarray,
    _reconstruct,
    (_reconstruct, "numpy.core.multiarray._reconstruct"),  # its name before numpy 2
    *{type(np.dtype(kind)) for kind in ("u1", "u4", "i4", "i8", "f4", "f8")},
]


@dataclass(frozen=True)
class Piece:
    """Rows ``start`` to ``stop`` of a tensor, one after another in ``file`` from byte ``offset`` on."""

    file: Path
    offset: int
    start: int
    stop: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk, in pieces along its first axis.

    Args:
        name: for messages.
        shape: of the whole tensor.
        dtype: as stored.
        pieces: in order; together they hold every row once.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[Piece, ...]

    @property
    def num_rows(self) -> int:
        """Entries of the first axis; 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        """Size of one row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows ``start`` to ``stop``; all of them by default.

        Raises:
            InputError: a file cannot be read, or ends early.
        """
        stop = self.num_rows if stop is None else stop
        rows = torch.empty((stop - start, *self.shape[1:]) if self.shape else (), dtype=self.dtype)
        data = memoryview(cast(Any, rows.view(-1).view(torch.uint8).numpy()))
        for piece in self.pieces:
            begin, end = max(start, piece.start), min(stop, piece.stop)
            if begin >= end:
                continue
            part = data[(begin - start) * self.row_bytes : (end - start) * self.row_bytes]
            try:
                with piece.file.open("rb", buffering=0) as file:
                    file.seek(piece.offset + (begin - piece.start) * self.row_bytes)
                    complete = _fill(file, part)
            except OSError as error:
                raise InputError(f"'{piece.file}' cannot be read: {error.strerror}.") from error
            if not complete:
                raise InputError(f"'{piece.file}' ends within tensor '{self.name}': the file is truncated.")
        return rows


def _fill(file: io.FileIO, data: memoryview) -> bool:
    """Read until ``data`` is full; false where the file ends first. One call reads at most 2 GiB."""
    while len(data):
        if not (count := file.readinto(data)):
            return False
        data = data[count:]
    return True


class _Slice(io.RawIOBase):
    """Part of a file, as a file."""

    def __init__(self, file: BinaryIO, offset: int, length: int) -> None:
        self._file, self._offset, self._length = file, offset, length
        self.seek(0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell() - self._offset

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self._length}[whence]
        return self._file.seek(self._offset + base + position) - self._offset

    def readinto(self, buffer: Any) -> int:
        rest = max(0, self._length - self.tell())
        return cast(Any, self._file).readinto(memoryview(buffer).cast("B")[:rest])


def load_archive(path: Path, *, offset: int = 0, length: int | None = None, fake: bool = True) -> Any:
    """Read what ``torch.save`` wrote, without running its code.

    Args:
        path: the file.
        offset: where in the file the archive begins.
        length: its length, if it ends before the file does.
        fake: leave tensors on disk; they become placeholders for :func:`locate`.

    Raises:
        InputError: unreadable, truncated, or holding objects that would have to run code to be read.
    """
    try:
        with path.open("rb") as file, torch.serialization.safe_globals(_HARMLESS):
            view = cast(Any, file if length is None else _Slice(file, offset, length))
            if not fake:
                return torch.load(view, map_location="cpu", weights_only=True)
            with FakeTensorMode():
                return torch.load(view, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UntrustedError(refusal(path, _culprit(error))) from error
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}.") from error
    except (RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"'{path}' is truncated or damaged: {reason}") from error


def locate(placeholder: Tensor, path: Path, *, start: int = 0, offset: int = 0) -> Piece:
    """Where the data of a placeholder from :func:`load_archive` lies.

    Args:
        placeholder: a tensor of an archive.
        path: the archive's file.
        start: row of the whole tensor that the placeholder's first one is.
        offset: where in the file the archive begins.

    Raises:
        InputError: the tensor is not stored row after row.
    """
    first = placeholder.untyped_storage()._checkpoint_offset
    if first is None or not placeholder.is_contiguous():
        raise InputError(f"'{path}' stores a tensor in a layout that conversion does not read.")
    num_rows = placeholder.shape[0] if placeholder.dim() else 1
    begin = offset + first + int(placeholder.storage_offset()) * placeholder.element_size()
    return Piece(path, begin, start, start + num_rows)


def refusal(path: Path, culprit: str) -> str:
    """The message for a file that is not read because reading it could run code."""
    return (
        f"'{path}' holds {culprit}, which could run code when read. It is refused; get the checkpoint from a source "
        "you trust and save it with plain tensors."
    )


def _culprit(error: pickle.UnpicklingError) -> str:
    text = str(error)
    return text.split("GLOBAL ")[-1].split(" ")[0] if "GLOBAL " in text else "an object"
