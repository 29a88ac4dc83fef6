"""What one round of training batches holds.

    0                     end                                     sample number in the run
    | round 0: m batches  | round 1: m batches  | ...
      proportions           proportions, updated at the edge

A :class:`RoundPlan` fixes a round completely: given it, any process can compute which sample stands at any place.

    global batch    | lane 0 | lane 1 | lane 2 | lane 3 |     as many places each; ranks and nodes own neighbouring ones
    position p      of a domain's stream goes to the lane that the bits of p modulo lanes name in reverse, as with the
                    stream's sub-streams (permutation.py)

So a lane draws on its own sub-streams, and a node downloads those of its lanes, while what a batch holds depends on
nothing but the plan. Domains get samples by the lane: a multiple of the lanes each, what that rounds off being owed.
"""

from __future__ import annotations

import dataclasses
import math
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmshearing.data.carry import apportion_carried
from llmshearing.data.permutation import derive_key, permute, reversed_bits

_SAMPLES_PER_LANE = 4  # of a domain in a round, on average, at least; with fewer a round would be far from its shares


@lru_cache(maxsize=2)
def shuffled_places(size: int, seed: int, number: int, lanes: int) -> NDArray[np.int64]:
    """The part of a round's layout that its proportions have no say in, so that it can be worked out beforehand.

    Returns:
        A keyed order of ``range(size / lanes)`` for each lane, (lanes, size / lanes).
    """
    if lanes == 1:
        return permute(np.arange(size), size, derive_key(seed, "round", number))[None]
    keys = [derive_key(seed, "round", number, lane) for lane in range(lanes)]
    places = np.tile(np.arange(size // lanes), (lanes, 1))
    which = np.broadcast_to(np.arange(lanes)[:, None], places.shape)
    return permute(places, [size // lanes] * lanes, keys, which)


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
        batch_size: samples in a global batch; has to be given for there to be lanes.
        sub_streams: the most that a domain's stream has, a power of two.
    """

    number: int
    begin: int
    size: int
    proportions: tuple[float, ...]
    used: tuple[int, ...]
    seed: int
    held: bool = False
    owed: tuple[int, ...] = ()
    batch_size: int = 1
    sub_streams: int = 1

    def __post_init__(self) -> None:
        if not self.owed:
            object.__setattr__(self, "owed", (0,) * len(self.used))

    @property
    def end(self) -> int:
        """Samples the run will have trained on when the round is over."""
        return self.begin + self.size

    @cached_property
    def lanes(self) -> int:
        """Parts of a global batch that draw on different sub-streams: fewer in rounds too small for their shares."""
        room = max(1, self.size // (_SAMPLES_PER_LANE * len(self.used)))
        return math.gcd(self.batch_size, self.sub_streams, 1 << room.bit_length() - 1)

    @cached_property
    def _split(self) -> tuple[NDArray[np.int64], tuple[int, ...]]:
        """Samples of each domain in the round, and what is owed after it."""
        return apportion_carried(self.size, self.proportions, self.owed, unit=self.lanes)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Samples of each domain in the round, (domains,), multiples of the lanes."""
        return self._split[0]

    def following(self, proportions: ArrayLike | None = None, *, rounds: int = 1) -> RoundPlan:
        """The plan ``rounds`` later, with new ``proportions`` or with the same ones."""
        counts, owed = self._split
        if rounds != 1:
            counts, owed = apportion_carried(rounds * self.size, self.proportions, self.owed, unit=self.lanes)
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

        A global batch is a contiguous run of places, and a lane as many of them in each. Which domain stands where is
        shuffled in each lane; the lane's samples of a domain come in the order of its stream. With one lane those used
        at any moment are the stream's first ones. With several they are at the round's end, and for a run that ends
        before it :meth:`taken_at` says which ones are left.
        """
        lanes = self.lanes
        drawn = shuffled_places(self.size, self.seed, self.number, lanes)
        each = self.counts // lanes
        ends = np.cumsum(each)
        domains = np.searchsorted(ends, drawn, side="right")
        narrow = domains.astype(np.min_scalar_type(len(each)))  # which numpy sorts ten times faster
        turns = np.empty_like(domains)  # how many of its lane's samples of the domain come before
        earlier = np.arange(self.size // lanes) - np.repeat(ends - each, each)
        np.put_along_axis(turns, np.argsort(narrow, axis=1, kind="stable"), earlier[None], axis=1)
        used = np.asarray(self.used, np.int64)
        first = used + (reversed_bits(lanes)[:, None] - used) % lanes  # (lanes, domains)
        positions = np.take_along_axis(first, domains, axis=1) + lanes * turns
        places = (lanes, -1, self.batch_size // lanes)
        by_batch = (part.reshape(places).swapaxes(0, 1).reshape(-1) for part in (domains, positions))
        return next(by_batch), next(by_batch)

    def used_at(self, sample: int) -> NDArray[np.int64]:
        """Samples of each domain used when the run had trained on ``sample`` samples, (domains,)."""
        if sample == self.begin:
            return np.asarray(self.used, np.int64)
        domains, _ = self.layout
        return np.asarray(self.used, np.int64) + np.bincount(domains[: sample - self.begin], minlength=len(self.used))

    def taken_at(self, sample: int) -> NDArray[np.int64]:
        """What :meth:`used_at` adds to ``used``, by a position's remainder modulo lanes, (domains, lanes)."""
        domains, positions = (part[: sample - self.begin] for part in self.layout)
        taken = np.bincount(domains * self.lanes + positions % self.lanes, minlength=len(self.used) * self.lanes)
        return taken.reshape(len(self.used), self.lanes)
