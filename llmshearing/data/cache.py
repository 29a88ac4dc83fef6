"""Whether the files of a shard are what the index says, and what to do where they are not."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass

from streaming import Stream
from streaming.base.format.base.reader import Reader

from llmshearing.errors import InputError

log = logging.getLogger(__name__)


def is_remote(stream: Stream) -> bool:
    """Whether the stream's local folder is a cache, and not the only copy."""
    return stream.remote not in (None, stream.local)


@dataclass(frozen=True)
class DataBytes:
    """Bytes of prepared data.

    Args:
        here: already on this machine's disk, where it is read.
        fetched: to download.
        cached: of what is fetched, as it lies in the cache.
    """

    here: int = 0
    fetched: int = 0
    cached: int = 0

    def __add__(self, other: DataBytes) -> DataBytes:
        return DataBytes(self.here + other.here, self.fetched + other.fetched, self.cached + other.cached)


def data_bytes(stream: Stream, shards: Iterable[Reader], *, keep_zip: bool) -> DataBytes:
    """What the shards of a stream take."""
    raw = [sum(info.bytes for info, _ in shard.file_pairs) for shard in shards]
    zipped = [sum((packed or info).bytes for info, packed in shard.file_pairs) for shard in shards]
    if not is_remote(stream):
        return DataBytes(here=sum(zipped))
    kept = sum(
        whole + (packed if keep_zip and packed != whole else 0) for whole, packed in zip(raw, zipped, strict=True)
    )
    return DataBytes(fetched=sum(zipped), cached=kept)


def name_of(shard: Reader) -> str:
    """The path of a shard's first file."""
    return os.path.join(shard.dirname, shard.split, shard.file_pairs[0][0].basename)


def flaw(shard: Reader) -> str | None:
    """What is wrong with a shard's local files by their sizes alone; ``None`` where nothing is.

    A download that was killed leaves the first part of a file. Files that are not there are no flaw of a cache.
    """
    for pair in shard.file_pairs:
        for info in filter(None, pair):
            try:
                size = os.stat(os.path.join(shard.dirname, shard.split, info.basename)).st_size
            except FileNotFoundError:
                continue
            if size != info.bytes:
                return f"'{info.basename}' has {size} bytes, where the index says {info.bytes}"
    return None


def _is_there(shard: Reader) -> bool:
    """Whether each of a shard's files is in the local folder, as it is or compressed."""
    folder = os.path.join(shard.dirname, shard.split)
    return all(
        any(os.path.exists(os.path.join(folder, info.basename)) for info in pair if info) for pair in shard.file_pairs
    )


def check_only_copy(shard: Reader) -> None:
    """Check a shard that cannot be fetched.

    Raises:
        InputError: it is not there, or has another size than the index says.
    """
    if problem := flaw(shard):
        raise InputError(
            f"Shard '{name_of(shard)}' is damaged: {problem}. Prepare the data again, or set remote to "
            "where a whole copy is."
        )
    if not _is_there(shard):
        raise InputError(f"Shard '{name_of(shard)}' is missing. Copy it again, or set remote to where it is.")


def fetch(stream: Stream, shard: Reader) -> None:
    """Make sure that a whole shard is in the local folder; a damaged one is fetched once more where there is a remote.

    Raises:
        InputError: it cannot be fetched, or is not what the index says.
    """
    if not is_remote(stream):
        check_only_copy(shard)
    for attempt in range(2):
        try:
            stream.prepare_shard(shard)
            problem = flaw(shard)
        except Exception as error:  # whatever a cloud's client raises
            problem = f"{type(error).__name__}: {error}"
        if problem is None:
            return
        if not is_remote(stream):
            break
        shard.evict()
        if attempt == 0:
            log.warning("Shard '%s' is fetched again: %s", name_of(shard), problem)
    raise InputError(
        f"Shard '{name_of(shard)}' cannot be fetched from {stream.remote!r}: {problem}. Check that it is there and "
        "whole."
    )
