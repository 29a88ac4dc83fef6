"""What ``torch.save`` writes: a zip archive of a pickle and one uncompressed record per storage, each with a CRC32.

Torch itself does not look at these checksums. Here nothing is used before its record was compared with its own.
"""

from __future__ import annotations

import datetime
import logging
import pickle
import re
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from llmshearing.convert.held import HeldFile, Slice, unreadable
from llmshearing.convert.stored import Piece, Record
from llmshearing.errors import InputError, UntrustedError

log = logging.getLogger(__name__)

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
_LOCAL_HEADER = struct.Struct("<4s22x2H")  # signature; lengths of the name and of the extra field that follow
_STORAGE = re.compile(r".*/data/\d+")


class Archive:
    """An archive in a file, or in part of one.

    Args:
        file: holds it.
        offset: where it begins.
        length: its length; to the end of the file by default.

    Raises:
        InputError: it is truncated or damaged, or not an archive of ``torch.save``.
    """

    def __init__(self, file: HeldFile, *, offset: int = 0, length: int | None = None) -> None:
        self.file, self.offset = file, offset
        self._slice = Slice(file, offset, file.size - offset if length is None else length)
        try:
            with zipfile.ZipFile(self._slice) as directory:
                entries = directory.infolist()
            # torch.serialization.set_crc32_options(False) writes zeros
            self.has_checksums = any(entry.CRC for entry in entries)
            self._records = {entry.filename: self._record(entry) for entry in entries}
            self._by_begin = {record.begin: record for record in self._records.values()}
            if len(self._by_begin) != len(entries):
                raise ValueError("two records in one place")
        except OSError as error:
            raise unreadable(file.path, error) from error
        except InputError:
            raise
        except Exception as error:  # a damaged directory may raise anything
            raise _damaged(file.path, error) from error

    def _record(self, entry: zipfile.ZipInfo) -> Record:
        header = bytearray(_LOCAL_HEADER.size)
        start = self.offset + entry.header_offset
        self.file.read_into(memoryview(header), start, f"record '{entry.filename}'")
        signature, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        if signature != b"PK\x03\x04" or entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"record '{entry.filename}' is compressed or damaged")
        begin = start + _LOCAL_HEADER.size + name_length + extra_length
        return Record(begin, entry.file_size, entry.CRC if self.has_checksums else None)

    def load(self, *, fake: bool) -> Any:
        """Read the object that was saved, without running its code.

        Args:
            fake: leave tensors on disk; they become placeholders for :meth:`locate`.

        Raises:
            InputError: unreadable, damaged, or holding objects that would have to run code to be read.
        """
        path = self.file.path
        for name, record in self._records.items():
            if not fake or not _STORAGE.fullmatch(name):
                record.check(self.file)
            if fake and name.endswith("/byteorder"):
                self._check_byte_order(record)
        self._slice.seek(0)
        try:
            with torch.serialization.safe_globals(_HARMLESS):
                if not fake:
                    return torch.load(cast(Any, self._slice), map_location="cpu", weights_only=True)
                with FakeTensorMode():
                    return torch.load(cast(Any, self._slice), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise UntrustedError(refusal(path, _culprit(error))) from error
        except OSError as error:
            raise unreadable(path, error) from error
        except Exception as error:  # a pickle that is none of torch.save may raise anything
            raise _damaged(path, error) from error

    def _check_byte_order(self, record: Record) -> None:
        found = bytearray(min(record.size, 16))
        self.file.read_into(memoryview(found), record.begin, "its byte order")
        if found.decode(errors="replace") != sys.byteorder:
            raise InputError(
                f"'{self.file.path}' was written on a machine of another byte order. Save it again on one like this."
            )

    def locate(self, placeholder: Tensor, *, start: int = 0) -> Piece:
        """Where the data of a placeholder from :meth:`load` lies.

        Args:
            placeholder: a tensor of this archive.
            start: row of the whole tensor that the placeholder's first one is.

        Raises:
            InputError: the tensor is not stored row after row.
        """
        first = placeholder.untyped_storage()._checkpoint_offset
        if first is None or not placeholder.is_contiguous():
            raise InputError(f"'{self.file.path}' stores a tensor in a layout that conversion does not read.")
        num_rows = placeholder.shape[0] if placeholder.dim() else 1
        begin = self.offset + first + int(placeholder.storage_offset()) * placeholder.element_size()
        record = self._by_begin.get(self.offset + first)
        if record is None or begin + placeholder.numel() * placeholder.element_size() > record.begin + record.size:
            raise InputError(f"'{self.file.path}' is damaged: a tensor is larger than its record.")
        return Piece(self.file, begin, start, start + num_rows, record)


def refusal(path: Path, culprit: str) -> str:
    """The message for a file that is not read because reading it could run code."""
    return (
        f"'{path}' holds {culprit}, which could run code when read. It is refused; get the checkpoint from a source "
        "you trust and save it with plain tensors."
    )


def _culprit(error: pickle.UnpicklingError) -> str:
    text = str(error)
    return text.split("GLOBAL ")[-1].split(" ")[0] if "GLOBAL " in text else "an object"


def _damaged(path: Path, error: Exception) -> InputError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(f"'{path}' is truncated or damaged: {reason}")
