"""Shards on disk: streaming's dataset without the traps that it has for long runs.

Found in streaming 0.13 and put right here: opening lists the shard of every sample; two runs that open data on one host
in the same moment take the same shared memory; a download that fails, or ends with its process, leaves the shard marked
as under way, so that whoever needs it next waits for ever; a shard that is cut off or fails its hash stays in the
cache, where it is not checked again; shared memory is kept until the process ends.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import time
import weakref
from bisect import bisect_right
from collections.abc import Sequence
from multiprocessing import resource_tracker
from typing import Any

import numpy as np
from numpy.typing import NDArray
from streaming import Stream, StreamingDataset
from streaming.base import distributed as dist
from streaming.base.format import reader_from_json
from streaming.base.shared import SharedMemory

from llmshearing.data.arguments import opens
from llmshearing.data.cache import DataBytes, check_only_copy, data_bytes, flaw, is_remote, name_of
from llmshearing.data.opening import opening, process_group
from llmshearing.errors import InputError
from llmshearing.fileio import read_json
from llmshearing.together import together

log = logging.getLogger(__name__)

_POLL = 0.005  # seconds between looks at a shard that another process is fetching
_REMOTE, _PREPARING, _LOCAL = 1, 2, 3  # streaming's shard states


class ShardBounds:
    """Which shard holds a sample: what streaming's ``Spanner`` answers, in O(shards) instead of O(samples) memory.

    Args:
        shard_sizes: samples in each shard, (shards,).
    """

    def __init__(self, shard_sizes: NDArray[np.int64]) -> None:
        self._begins: list[int] = (np.cumsum(shard_sizes) - shard_sizes).tolist()
        self._num_samples = int(shard_sizes.sum())

    def __getitem__(self, sample_id: int) -> tuple[int, int]:
        """The shard of a sample and its place in it."""
        if not 0 <= sample_id < self._num_samples:
            raise IndexError(f"There is no sample {sample_id} among {self._num_samples}.")
        shard = bisect_right(self._begins, sample_id) - 1
        return shard, int(sample_id) - self._begins[shard]


class ShardedDataset(StreamingDataset):
    """A ``StreamingDataset`` that opens in O(shards) and whose failures are errors rather than waits.

    Args:
        streams: where the shards are.
        cache_limit: most bytes of shards to keep in the local folders. ``None``: no limit.
        **settings: see ``StreamingDataset``.

    Raises:
        InputError: what ``StreamingDataset`` says about wrong settings or unreadable data; a shard that is the only
            copy is cut off, or missing on any node.
    """

    def __init__(self, *, streams: Sequence[Stream], cache_limit: int | str | None = None, **settings: Any) -> None:
        with together():
            for stream in streams:
                check_index(stream)
                if cache_limit is not None and not is_remote(stream):
                    raise InputError(
                        f"cache_limit deletes the shards it has no room for, but '{stream.local}' is their only copy. "
                        "Leave cache_limit out, or set remote."
                    )
        fetched = f", remote is {streams[0].remote!r}" if is_remote(streams[0]) else ""
        with opens(f"local is {streams[0].local!r}{fetched}"):
            try:
                with opening(ShardBounds):
                    super().__init__(streams=streams, cache_limit=cache_limit, **settings)
            except RuntimeError as error:
                if "contains no samples" not in str(error):
                    raise
                raise InputError(f"{error} Prepare more data for this domain, or leave the domain out.") from error
        arrays = (self._next_epoch.arr, self._cache_usage.arr, self._shard_states, self._shard_access_times)
        self._memories = [self._locals_shm, self._shared_barrier._arr.shm, *(array.shm for array in arrays)]
        for memory in self._memories:
            atexit.unregister(memory.cleanup)  # the finalizer below runs at exit too, and names are given back once
        weakref.finalize(self, _clean_up, self._memories, os.getpid())
        self._check_files()

    def unlink(self) -> None:
        """Give back the names of the shared memory, so that nothing is left when its processes end.

        The dataset stays usable, though not by workers that are spawned later.
        """
        _give_back_names(self._memories)

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """Make sure that a shard is in the local folder.

        Args:
            shard_id: which shard.
            blocking: wait where another process is fetching it, for at most the time that all attempts may take.

        Raises:
            RuntimeError: it cannot be fetched, or is not what the index says.
        """
        stream = self.streams[int(self.stream_per_shard[shard_id])]
        attempts = stream.download_retry
        while True:
            if self._shard_states[shard_id] == _REMOTE:
                self._shard_access_times[shard_id] = time.time_ns()  # since when it is under way
            try:
                super().prepare_shard(shard_id, blocking=False)
            except Exception as error:
                self._forget(shard_id)
                attempts -= 1
                # streaming has repeated failed downloads already; a failed hash (ValueError) is worth another one.
                if attempts > 0 and isinstance(error, ValueError) and is_remote(stream):
                    log.warning("Shard '%s' is fetched again: %s", name_of(self.shards[shard_id]), error)
                    continue
                raise RuntimeError(
                    f"Shard '{name_of(self.shards[shard_id])}' cannot be fetched from "
                    f"{stream.remote or 'anywhere, since no remote is set'}: {error}. Check that it is there and whole."
                ) from error
            if not blocking or self._shard_states[shard_id] == _LOCAL:
                return
            check_parent()
            self._take_over(shard_id, after=stream.download_timeout * stream.download_retry)
            time.sleep(_POLL)

    def _take_over(self, shard_id: int, *, after: float) -> None:
        """Forget a shard that has been under way for more than ``after`` seconds: nobody is fetching it any more."""
        with self._cache_filelock:  # which super().prepare_shard has made; only one of those who wait may take over
            under_way = (time.time_ns() - int(self._shard_access_times[shard_id])) / 1e9
            if self._shard_states[shard_id] == _PREPARING and under_way > after:
                log.warning(
                    "Shard '%s' was not there after %g s (download_timeout * download_retry) and is fetched again.",
                    *(name_of(self.shards[shard_id]), after),
                )
                self._forget(shard_id)
                self._shard_access_times[shard_id] = time.time_ns()

    def get_item(self, sample_id: int, retry: int = 7, *, again: bool = True) -> dict[str, Any]:
        """One sample, its shard fetched where needed.

        Raises:
            RuntimeError: the shard cannot be fetched or read, not even after it was fetched again.
        """
        try:
            return super().get_item(sample_id, retry)
        except (ValueError, IndexError) as error:
            shard_id, _ = self.spanner[sample_id]
            name = name_of(self.shards[shard_id])
            if again and is_remote(self.streams[int(self.stream_per_shard[shard_id])]):
                log.warning("Shard '%s' is damaged and is fetched again: %s", name, error)
                self.evict_shard(shard_id)
                return ShardedDataset.get_item(self, sample_id, retry, again=False)
            raise RuntimeError(
                f"Shard '{name}' is damaged: sample {sample_id} cannot be read ({error}). Delete it and fetch or "
                "prepare it again."
            ) from error

    def stored(self) -> DataBytes:
        """What the data takes, here and in the cache."""
        found = DataBytes()
        for stream, begin, count in zip(
            self.streams, self.shard_offset_per_stream, self.shards_per_stream, strict=True
        ):
            found += data_bytes(stream, self.shards[int(begin) : int(begin + count)], keep_zip=stream.keep_zip)
        return found

    def shards_of(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The shard of each of ``sample_ids``, (n,)."""
        return np.searchsorted(self.sample_offset_per_shard, sample_ids, side="right") - 1

    def _forget(self, shard_id: int) -> None:
        """Drop a shard that could not be prepared, so that the next one to need it tries for itself."""
        if is_remote(self.streams[int(self.stream_per_shard[shard_id])]):
            self.shards[shard_id].evict()
        self._shard_states[shard_id] = _REMOTE

    def _check_files(self) -> None:
        """Forget what a killed download has left of a cached shard; an only copy has to be there and whole."""
        with process_group(), together():
            for shard_id, shard in enumerate(self.shards):
                if not is_remote(self.streams[int(self.stream_per_shard[shard_id])]):
                    check_only_copy(shard)
                elif dist.get_local_rank() == 0 and self._shard_states[shard_id] == _LOCAL and (problem := flaw(shard)):
                    log.warning("Shard '%s' is fetched again: %s", name_of(shard), problem)
                    self.evict_shard(shard_id)


def _clean_up(memories: Sequence[SharedMemory], owner: int) -> None:
    """Give back shared memory when its dataset is gone; streaming itself keeps it until the process ends."""
    if os.getpid() == owner:  # a forked worker's copy of the dataset goes first
        _give_back_names(memories)
        for memory in memories:
            memory.cleanup()


def _give_back_names(memories: Sequence[SharedMemory]) -> None:
    """Unlink what this process created, once: a second time the name may be that of another run's memory."""
    for memory in memories:
        while memory.created_shms:
            created = memory.created_shms.pop()
            memory.opened_shms.append(created)  # which streaming closes, but does not unlink
            try:
                created.unlink()
            except FileNotFoundError:  # somebody cleaned up; the tracker would unlink the name when the process ends
                resource_tracker.unregister(f"/{created.name}", "shared_memory")


def check_index(stream: Stream) -> None:
    """Check that there is data to open, as far as it is in the local folder.

    Raises:
        InputError: there is not, or its index cannot be read.
    """
    path = os.path.join(stream.local, "index.json")
    if not os.path.isfile(path):
        if is_remote(stream):
            return
        raise InputError(f"There is no data in '{stream.local}': it has no index.json. Prepare it, or set remote.")
    index = read_json(path)
    try:
        if index["version"] != 2:
            raise ValueError(f"its version is {index['version']!r}, not 2")
        for info in index["shards"]:
            reader_from_json(stream.local, None, info)
    except Exception as error:  # whatever comes of reading something else as an index
        remedy = "Delete it, so that it is fetched again" if is_remote(stream) else "Prepare the data again"
        raise InputError(f"'{path}' is no index of shards ({type(error).__name__}: {error}). {remedy}.") from error


def check_parent() -> None:
    """End a waiting worker whose training process is gone; nobody would ever stop it otherwise.

    Raises:
        RuntimeError: the parent process has died.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        raise RuntimeError("The training process is gone.")
