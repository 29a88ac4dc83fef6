"""Shards on disk: streaming's dataset without the traps that it has for long runs.

Found in streaming 0.13 and put right here: opening lists the shard of every sample; two runs that open data on one host
in the same moment take the same shared memory; a failed download leaves the shard marked as under way, so that whoever
needs it next waits for ever; a shard that fails its hash stays in the cache, where it is not checked again; shared
memory is kept until the process ends.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import time
import weakref
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from tempfile import gettempdir
from typing import Any

import numpy as np
import streaming.base.dataset as streaming_dataset
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from streaming import Stream, StreamingDataset
from streaming.base import distributed as dist
from streaming.base.shared import SharedMemory

from llmshearing.errors import InputError

log = logging.getLogger(__name__)

_POLL = 0.005  # seconds between looks at a shard that another process is fetching
_TURN = 120  # seconds to wait for other runs that open data
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
        InputError: what ``StreamingDataset`` says about wrong settings or unreadable data.
    """

    def __init__(self, *, streams: Sequence[Stream], cache_limit: int | str | None = None, **settings: Any) -> None:
        for stream in streams:
            check_index(stream)
            if cache_limit is not None and not is_remote(stream):
                raise InputError(
                    f"cache_limit deletes the shards it has no room for, but '{stream.local}' is their only copy. "
                    "Leave cache_limit out, or set remote."
                )
        try:
            with _one_at_a_time(), _bounds_for_spanner():
                super().__init__(streams=streams, cache_limit=cache_limit, **settings)
        except (ValueError, FileNotFoundError) as error:
            raise InputError(f"The data cannot be opened: {error}") from error
        except RuntimeError as error:
            if "contains no samples" not in str(error):
                raise
            raise InputError(f"{error} Prepare more data for this domain, or leave the domain out.") from error
        arrays = (self._next_epoch.arr, self._cache_usage.arr, self._shard_states, self._shard_access_times)
        self._memories = [self._locals_shm, self._shared_barrier._arr.shm, *(array.shm for array in arrays)]
        for memory in self._memories:
            atexit.unregister(memory.cleanup)  # the finalizer below runs at exit too, and names are given back once
        weakref.finalize(self, _clean_up, self._memories, os.getpid())

    def unlink(self) -> None:
        """Give back the names of the shared memory, so that nothing is left when its processes end.

        The dataset stays usable, though not by workers that are spawned later.
        """
        _give_back_names(self._memories)

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """Make sure that a shard is in the local folder.

        Args:
            shard_id: which shard.
            blocking: wait where another process is fetching it.

        Raises:
            RuntimeError: it cannot be fetched, or is not what the index says.
        """
        stream = self.streams[int(self.stream_per_shard[shard_id])]
        attempts = stream.download_retry
        while True:
            try:
                super().prepare_shard(shard_id, blocking=False)
            except Exception as error:
                self._forget(shard_id)
                attempts -= 1
                # streaming has repeated failed downloads already; a failed hash (ValueError) is worth another one.
                if attempts > 0 and isinstance(error, ValueError) and is_remote(stream):
                    log.warning("%s is fetched again: %s", self._describe(shard_id), error)
                    continue
                raise RuntimeError(
                    f"{self._describe(shard_id)} cannot be fetched from "
                    f"{stream.remote or 'anywhere, since no remote is set'}: {error}. Check that it is there and whole."
                ) from error
            if not blocking or self._shard_states[shard_id] == _LOCAL:
                return
            check_parent()
            time.sleep(_POLL)

    def get_item(self, sample_id: int, retry: int = 7) -> dict[str, Any]:
        """One sample, its shard fetched where needed.

        Raises:
            RuntimeError: the shard cannot be fetched or read.
        """
        shard_id, _ = self.spanner[sample_id]
        try:
            return super().get_item(sample_id, retry)
        except (ValueError, IndexError) as error:
            raise RuntimeError(
                f"{self._describe(shard_id)} is damaged: sample {sample_id} cannot be read ({error}). Delete it and "
                "fetch or prepare it again."
            ) from error

    def shards_of(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The shard of each of ``sample_ids``, (n,)."""
        return np.searchsorted(self.sample_offset_per_shard, sample_ids, side="right") - 1

    def _forget(self, shard_id: int) -> None:
        """Drop a shard that could not be prepared, so that the next one to need it tries for itself."""
        if is_remote(self.streams[int(self.stream_per_shard[shard_id])]):
            self.shards[shard_id].evict()
        self._shard_states[shard_id] = _REMOTE

    def _describe(self, shard_id: int) -> str:
        shard = self.shards[shard_id]
        return f"Shard '{os.path.join(shard.dirname, shard.split, shard.file_pairs[0][0].basename)}'"


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


def is_remote(stream: Stream) -> bool:
    """Whether the stream's local folder is a cache, and not the only copy."""
    return stream.remote not in (None, stream.local)


def check_index(stream: Stream) -> None:
    """Check that there is data to open.

    Raises:
        InputError: there is not.
    """
    if not is_remote(stream) and not os.path.isfile(os.path.join(stream.local, "index.json")):
        raise InputError(f"There is no data in '{stream.local}': it has no index.json. Prepare it, or set remote.")


def check_parent() -> None:
    """End a waiting worker whose training process is gone; nobody would ever stop it otherwise.

    Raises:
        RuntimeError: the parent process has died.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        raise RuntimeError("The training process is gone.")


@contextmanager
def _bounds_for_spanner() -> Iterator[None]:
    """Let ``StreamingDataset.__init__`` build :class:`ShardBounds`.

    Its ``Spanner`` lists the shard of every sample while it is built (8 GB for 10^9 samples), and the class offers no
    other place to choose one.
    """
    names = vars(streaming_dataset)
    spanner = names["Spanner"]
    names["Spanner"] = ShardBounds
    try:
        yield
    finally:
        names["Spanner"] = spanner


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Let one run at a time open data on this host.

    Streaming looks for an unused prefix for its shared memory and then takes it; another run in between takes the same
    one. All ranks of a run have to look while their leader has the turn. Whoever waited for too long goes on without
    one: taking the same memory is then an error of streaming's, not a silent mix-up, and far from likely.
    """
    lock = FileLock(os.path.join(gettempdir(), f"llmshearing-{os.getuid()}.lock"))
    with process_group():
        try:
            if dist.get_local_rank() == 0:
                try:
                    lock.acquire(timeout=_TURN)
                except Timeout:
                    log.warning(
                        "Another run has held the lock file '%s' for %g s, as runs do while they open data. This one "
                        "goes on without it; should it fail now, see whether the other one hangs, and start again.",
                        *(lock.lock_file, _TURN),
                    )
            dist.barrier()
            yield
        finally:
            lock.release()


@contextmanager
def process_group() -> Iterator[None]:
    """Make sure that the ranks can wait for each other, as streaming does where the trainer is yet to come."""
    initialized_here = dist.maybe_init_dist()
    try:
        yield
    finally:
        if initialized_here:
            torch.distributed.destroy_process_group()
