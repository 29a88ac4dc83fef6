"""Files of the work folder, ``OUT/.partial``, which may be of a disk or of an object store.

Several processes and machines write there, none of which knows of another: a file's name says what it was made of, it
appears whole, and who makes it again makes the same.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from llmshearing import storage
from llmshearing.data_prep.corpus import SourceFile
from llmshearing.errors import naming
from llmshearing.storage import Place, join

#: Folder of what tasks have not finished; a restart empties it.
UNFINISHED = "unfinished"


def part_path(work: Place, file: SourceFile, ending: str) -> str:
    """Where the first pass puts a part's ``.tokens``, ``.index``, ``.json`` or ``.bad.jsonl``."""
    return join(work, "parts", f"{file.key}{ending}")


@contextmanager
def new_files(work: Place, places: Sequence[str]) -> Iterator[list[IO[bytes]]]:
    """Yield files to fill, one for each place, that appear there when the block succeeds, in this order."""
    with ExitStack() as stack:
        if storage.is_remote(work):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            folder = Path(work) / UNFINISHED
            folder.mkdir(parents=True, exist_ok=True)
        # Names of their own: a killed run's last worker may still be writing when the next run starts.
        paths = [folder / uuid.uuid4().hex for _ in places]
        for path in paths:
            stack.callback(path.unlink, missing_ok=True)
        with naming(work), ExitStack() as opened:
            files = [opened.enter_context(path.open("wb")) for path in paths]
            yield list(files)
            for file in files:  # before the record that declares them finished
                file.flush()
                os.fsync(file.fileno())
        for path, place in zip(paths, places, strict=True):
            if storage.is_remote(work):
                storage.upload(path, place)
            else:
                Path(place).parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, place)


def write_bytes(work: Place, place: str, data: bytes | memoryview) -> None:
    """Write a file of the work folder or of the output, of which a kill leaves nothing but what a restart removes."""
    with new_files(work, [place]) as (file,):
        file.write(data)


def write_array(work: Place, place: str, values: NDArray) -> None:
    """Write the bytes of an array to a place of the work folder."""
    write_bytes(work, place, np.ascontiguousarray(values).data)


def read_array(place: str, dtype: np.dtype | type | str, *, start: int = 0, count: int | None = None) -> NDArray:
    """Elements of an array, ``count`` from the one at ``start`` on, or all.

    Raises:
        InputError: they are not there or cannot be read.
    """
    size = np.dtype(dtype).itemsize
    with storage.open_input(place) as file:
        return read_elements(file, place, dtype, start, file.size() // size - start if count is None else count)


def read_elements(file: IO[bytes], place: str, dtype: np.dtype | type | str, start: int, count: int) -> NDArray:
    """``count`` elements of an open file of them, from the one at ``start`` on.

    Raises:
        InputError: they cannot be read.
    """
    size = np.dtype(dtype).itemsize
    with storage.reporting(place):
        file.seek(start * size)
        data = file.read(count * size)
        if len(data) != count * size:
            raise OSError(f"only {len(data)} of {count * size} bytes came")
    return np.frombuffer(data, dtype)
