"""Fetching shards ahead of the samples that need them."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from llmshearing.data.shards import ShardedDataset

log = logging.getLogger(__name__)

_POLL = 0.01  # seconds between looks at how far the consumer is


class Prefetcher:
    """Prepares the shards of the coming samples in a thread, at most so many samples ahead.

    A shard that cannot be fetched is left to the consumer, who tries again when a sample needs it and then raises.

    Args:
        dataset: whose shards to prepare.
        ahead: how many samples.
    """

    def __init__(self, dataset: ShardedDataset, *, ahead: int) -> None:
        self._dataset = dataset
        self._ahead = ahead
        self._needs: deque[tuple[int, int]] = deque()  # (how many samples come before, shard)
        self._taken = 0
        self._stopped = False
        threading.Thread(target=self._run, daemon=True).start()

    def follow(self, ids: NDArray[np.int64], then: NDArray[np.int64]) -> Iterator[int]:
        """Yield ``ids``, fetching ahead of them and on into ``then``.

        Args:
            ids: the samples of this round, (n,).
            then: those that will probably follow, (m,).
        """
        shards = self._dataset.shards_of(np.concatenate([ids, then]))
        distinct, first_use = np.unique(shards, return_index=True)
        order = np.argsort(first_use)
        self._taken = 0
        self._needs = deque(zip(first_use[order].tolist(), distinct[order].tolist(), strict=True))
        for taken, sample_id in enumerate(ids.tolist()):
            self._taken = taken
            yield sample_id

    def stop(self) -> None:
        """Fetch no more."""
        self._stopped = True

    def _run(self) -> None:
        while not self._stopped:
            needs = self._needs
            if not needs or needs[0][0] - self._taken > self._ahead:
                time.sleep(_POLL)
                continue
            _, shard = needs.popleft()
            try:
                self._dataset.prepare_shard(shard, blocking=False)
            except RuntimeError as error:
                log.warning("Not fetched ahead: %s", error)
