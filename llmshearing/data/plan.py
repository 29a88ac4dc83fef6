"""What one round of training batches holds.

    0                     end                                     sample number in the run
    | round 0: m batches  | round 1: m batches  | ...
      proportions           proportions, updated at the edge

A :class:`RoundPlan` fixes a round completely: given it, any process can compute which sample stands at any place.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmshearing.data.carry import apportion_carried
from llmshearing.data.permutation import derive_key, permute


@lru_cache(maxsize=2)
def shuffled_places(size: int, seed: int, number: int) -> NDArray[np.int64]:
    """The part of a round's layout that its proportions have no say in, so that it can be worked out beforehand."""
    return permute(np.arange(size), size, derive_key(seed, "round", number))


@dataclasses.dataclass(frozen=True)
class RoundPlan:
    """One round.

    Args:
        number: which round, from 0.
        begin: samples the run had trained on when the round began.
        size: samples in the round: batches times global batch size.
        proportions: share of each domain, (domains,), summing to 1.
        used: samples of each domain used before the round, (domains,).
        seed: seed of all orders.
        held: later rounds keep these proportions, so nobody has to wait for an update.
        owed: what rounding has left each domain short of before the round, (domains,), in the unit of ``carry.py``.
            Empty: nothing.
    """

    number: int
    begin: int
    size: int
    proportions: tuple[float, ...]
    used: tuple[int, ...]
    seed: int
    held: bool = False
    owed: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.owed:
            object.__setattr__(self, "owed", (0,) * len(self.used))

    @property
    def end(self) -> int:
        """Samples the run will have trained on when the round is over."""
        return self.begin + self.size

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Samples of each domain in the round, (domains,)."""
        return apportion_carried(self.size, self.proportions, self.owed)[0]

    def following(self, proportions: ArrayLike | None = None, *, rounds: int = 1) -> RoundPlan:
        """The plan ``rounds`` later, with new ``proportions`` or with the same ones."""
        counts, owed = apportion_carried(rounds * self.size, self.proportions, self.owed)
        return dataclasses.replace(
            self,
            number=self.number + rounds,
            begin=self.begin + rounds * self.size,
            proportions=self.proportions if proportions is None else tuple(np.asarray(proportions, float).tolist()),
            used=tuple((np.asarray(self.used, np.int64) + counts).tolist()),
            owed=owed,
        )

    def reaches(self, sample: int) -> bool:
        """Whether the round of absolute ``sample`` is known: it is this one, or follows from it."""
        return sample >= self.begin and (self.held or sample < self.end)

    def covering(self, sample: int) -> RoundPlan | None:
        """The plan of the round that holds absolute ``sample``, or ``None`` where its update is still to come."""
        if not self.reaches(sample):
            return None
        rounds = (sample - self.begin) // self.size
        return self.following(rounds=rounds) if rounds else self

    @cached_property
    def layout(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The domain at each place of the round, (size,), and the place in that domain's endless stream, (size,).

        A global batch is a contiguous run of places. Which domain stands where is shuffled; each domain's samples come
        in the order of its stream, so that those used at any moment are the stream's first ones, and nothing is skipped
        or repeated if a run ends within a round.
        """
        drawn = shuffled_places(self.size, self.seed, self.number)
        ends = np.cumsum(self.counts)
        domains = np.searchsorted(ends, drawn, side="right")
        positions = np.empty_like(domains)
        firsts = np.asarray(self.used, np.int64) - (ends - self.counts)
        positions[np.argsort(domains, kind="stable")] = np.arange(self.size) + np.repeat(firsts, self.counts)
        return domains, positions

    def used_at(self, sample: int) -> NDArray[np.int64]:
        """Samples of each domain used when the run had trained on ``sample`` samples, (domains,)."""
        if sample == self.begin:
            return np.asarray(self.used, np.int64)
        domains, _ = self.layout
        return np.asarray(self.used, np.int64) + np.bincount(domains[: sample - self.begin], minlength=len(self.used))
