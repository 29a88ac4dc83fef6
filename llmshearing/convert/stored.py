"""Tensors that stay on disk: where their rows lie, and reading them some rows at a time."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from llmshearing.convert.held import HeldFile
from llmshearing.errors import InputError

_BLOCK = 1 << 20


@dataclass
class Record:
    """Bytes of a file with their checksum.

    Attributes:
        begin: where in the file.
        size: in bytes.
        crc: the CRC32 that was saved with them, or ``None`` where none was.
    """

    begin: int
    size: int
    crc: int | None
    checked: bool = False

    def check(self, file: HeldFile) -> None:
        """Compare all of it with its checksum, once.

        Raises:
            InputError: they differ, or the file ends early.
        """
        if self.checked:
            return
        found, block = 0, bytearray(min(_BLOCK, self.size))
        for start in range(0, self.size, _BLOCK):
            data = memoryview(block)[: self.size - start]
            file.read_into(data, self.begin + start, "a record")
            found = zlib.crc32(data, found)
        self.compare(found, file)
        self.checked = True

    def compare(self, found: int, file: HeldFile) -> None:
        """Compare a CRC32 that was taken while reading.

        Raises:
            InputError: they differ.
        """
        if self.crc is not None and found != self.crc:
            raise InputError(
                f"'{file.path}' is damaged: bytes {self.begin} to {self.begin + self.size} do not have the checksum "
                "they were saved with. Copy it again, or take another checkpoint."
            )


@dataclass(frozen=True)
class Piece:
    """Rows ``start`` to ``stop`` of a tensor, one after another in ``file`` from byte ``offset`` on, in ``record``."""

    file: HeldFile
    offset: int
    start: int
    stop: int
    record: Record


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

    def read(self) -> Tensor:
        """All of it.

        Raises:
            InputError: a file cannot be read, ends early or is damaged.
        """
        whole = list(self.parts(max(1, self.num_rows)))
        return whole[0] if whole else torch.empty(self.shape, dtype=self.dtype)

    def parts(self, num_rows: int) -> Iterator[Tensor]:
        """Its rows in order, up to ``num_rows`` at a time. Errors as for :meth:`read`."""
        running = [0] * len(self.pieces)  # checksums
        for start in range(0, self.num_rows, num_rows):
            stop = min(start + num_rows, self.num_rows)
            rows = torch.empty((stop - start, *self.shape[1:]) if self.shape else (), dtype=self.dtype)
            data = memoryview(cast(Any, rows.view(-1).view(torch.uint8).numpy()))
            for index, piece in enumerate(self.pieces):
                begin, end = max(start, piece.start), min(stop, piece.stop)
                if begin < end:
                    part = data[(begin - start) * self.row_bytes : (end - start) * self.row_bytes]
                    offset = piece.offset + (begin - piece.start) * self.row_bytes
                    piece.file.read_into(part, offset, f"tensor '{self.name}'")
                    running[index] = self._sum(piece, part, running[index], last=end == piece.stop)
            yield rows

    def _sum(self, piece: Piece, data: memoryview, running: int, *, last: bool) -> int:
        """The checksum of a piece up to the end of ``data``, compared at its end."""
        record = piece.record
        if (piece.stop - piece.start) * self.row_bytes != record.size:  # shares its record with other tensors
            record.check(piece.file)
            return 0
        if record.crc is not None:
            running = zlib.crc32(data, running)
            if last:
                record.compare(running, piece.file)
        return running
