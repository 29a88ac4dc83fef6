"""``--dedup exact``: of documents of the same text, the first is trained on, in the order of domains, files and lines.

1. each part's hashes are sorted, and cut into as many ranges of hashes as there are partitions;
2. each partition, one range of hashes of all parts, is searched for documents that are not the first of their text;
3. ``count_part`` reads of each partition which documents of its part these are.

So no process holds more than a partition's hashes, or those of one part.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmshearing import storage
from llmshearing.data_prep.corpus import SourceFile
from llmshearing.data_prep.tokenize_file import read_index
from llmshearing.data_prep.work import new_files, read_array
from llmshearing.storage import Place, join

#: Documents whose hashes are compared at a time.
PARTITION_DOCUMENTS = 1 << 22

#: A document by its hash and its place in its part.
ROW = np.dtype([("hash", "<u8"), ("row", "<u8")])


def count_partitions(documents: int) -> int:
    """How many partitions so many documents take."""
    return -(-documents // PARTITION_DOCUMENTS)


def _sorted_path(packed: Place, number: int) -> str:
    return join(packed, "sorted", f"{number}")


def _copies_path(packed: Place, partition: int, num_partitions: int) -> str:
    return join(packed, "copies", f"{partition}-of-{num_partitions}")


def sort_part(file: SourceFile, *, number: int, work: Place, packed: Place, num_partitions: int) -> None:
    """Write a part's hashes in order, behind the places where each partition begins, unless an earlier run has."""
    place = _sorted_path(packed, number)
    if storage.info(place) is not None:
        return
    hashes = np.concatenate([np.empty(0, "<u8"), *(piece["hash"] for piece in read_index(work, file))])
    rows = np.empty(len(hashes), ROW)
    rows["row"] = np.argsort(hashes, kind="stable")
    rows["hash"] = hashes[rows["row"]]
    bounds = [(partition << 64) // num_partitions for partition in range(num_partitions)]
    starts = np.searchsorted(rows["hash"], np.array(bounds, "<u8")).tolist()
    with new_files(work, [place]) as (out,):
        out.write(np.array([*starts, len(rows)], "<u8").data)
        out.write(rows.data)


def find_copies(partition: int, *, num_parts: int, work: Place, packed: Place, num_partitions: int) -> None:
    """Write which documents of a partition are not the first of their text, by part, unless an earlier run has."""
    place = _copies_path(packed, partition, num_partitions)
    if storage.info(place) is not None:
        return
    pieces, sizes = [np.empty(0, ROW)], []
    for number in range(num_parts):
        begin, end = read_array(_sorted_path(packed, number), "<u8", start=partition, count=2).tolist()
        start = num_partitions + 1 + 2 * begin  # in words, of which a row has two
        words = read_array(_sorted_path(packed, number), "<u8", start=start, count=2 * (end - begin))
        pieces.append(words.view(ROW))
        sizes.append(end - begin)
    rows = np.concatenate(pieces)
    parts = np.repeat(np.arange(num_parts), sizes)
    copied = np.ones(len(rows), bool)
    copied[np.unique(rows["hash"], return_index=True)[1]] = False  # the first, as parts and their rows are in order
    starts = np.concatenate([[0], np.cumsum(np.bincount(parts[copied], minlength=num_parts))])
    with new_files(work, [place]) as (out,):
        out.write(starts.astype("<u8").data)
        out.write(rows["row"][copied].data)


def read_copies(packed: Place, number: int, *, num_parts: int, num_partitions: int) -> NDArray[np.int64]:
    """The documents of a part that are not the first of their text, in order."""
    found = [np.empty(0, "<u8")]
    for partition in range(num_partitions):
        place = _copies_path(packed, partition, num_partitions)
        begin, end = read_array(place, "<u8", start=number, count=2).tolist()
        found.append(read_array(place, "<u8", start=num_parts + 1 + begin, count=end - begin))
    return np.sort(np.concatenate(found)).astype(np.int64)
