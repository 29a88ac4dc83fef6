"""From a round's places to samples: every domain's endless stream, as a run that may follow other stages reads it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llmshearing.data.partial_rounds import Unfinished
from llmshearing.data.permutation import DomainOrder, derive_key, sample_ids
from llmshearing.data.plan import RoundPlan


class Streams:
    """The streams of all domains.

    Args:
        domains: names.
        shard_sizes: samples in each shard of a domain, (shards,) each.
        seed: of all orders.
        block_size: see :class:`~llmshearing.data.permutation.DomainOrder`.
        sub_streams: see there.
        unfinished: the rounds that earlier stages did not finish, oldest first.
    """

    def __init__(
        self,
        domains: Sequence[str],
        shard_sizes: Sequence[NDArray[np.int64]],
        *,
        seed: int,
        block_size: int,
        sub_streams: int,
        unfinished: Sequence[Unfinished] = (),
    ) -> None:
        self.domains = domains
        self.orders = [
            DomainOrder(sizes, key=derive_key(seed, "domain", domain), block_size=block_size, sub_streams=sub_streams)
            for domain, sizes in zip(domains, shard_sizes, strict=True)
        ]
        self.first_samples = np.cumsum([0] + [order.num_samples for order in self.orders])[:-1]
        self._unfinished = unfinished

    def sample_ids(self, plan: RoundPlan, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The samples at ``places`` of a round, (n,), numbered through all domains."""
        domains, positions = (part[places] for part in plan.layout)
        if not len(places):
            return places
        by_domain = np.argsort(domains, kind="stable")
        present, begins = np.unique(domains[by_domain], return_index=True)
        asked = [
            (self.orders[index], self._resolve(index, part))
            for index, part in zip(present.tolist(), np.split(positions[by_domain], begins[1:]), strict=True)
        ]
        ids = np.empty_like(positions)
        ids[by_domain] = np.concatenate(sample_ids(asked))
        return ids + self.first_samples[domains]

    def _resolve(self, index: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        for parts in reversed(self._unfinished):
            if (part := parts.get(self.domains[index])) is not None:
                positions = part.resolve(positions)
        return positions
