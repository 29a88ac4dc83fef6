"""Going on behind a stage that ended within a round: with several lanes its samples are not the first of their stream.

    positions of a domain in the round    begin ................................. begin + samples
    used by the stage, 4 lanes            0 1 2 3 0 1 . 3 0 . . 3 . . . .         the first ones of each lane
    counted as used                       ###########                             as many, so one number says it
    gone on with                                     0 1 2 3 0 1 2 3              each stands for one that is left

A position that is counted on with stands for one of its own lane where that has some left, so that nodes go on reading
what they have; behind the round each stands for itself. The next stage may end like that, too, and the one after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmshearing.data.plan import RoundPlan


@dataclass(frozen=True)
class Part:
    """What one domain has in a round that a stage did not finish, in plain types.

    Args:
        begin: samples of the domain used before the round.
        samples: those in the round.
        taken: how many of them the stage used, by their position's remainder modulo lanes, (lanes,).
    """

    begin: int
    samples: int
    taken: Sequence[int]

    @property
    def end(self) -> int:
        """Where the domain's stream stands when the round is over."""
        return self.begin + self.samples

    @cached_property
    def left(self) -> NDArray[np.int64]:
        """What each position behind those counted as used stands for, (samples left,)."""
        taken = np.asarray(self.taken, np.int64)
        lanes = len(taken)
        places = np.arange(self.samples)
        turns = places // lanes - taken[(self.begin + places) % lanes]
        actual, turns = self.begin + places[turns >= 0], turns[turns >= 0]
        counted = np.arange(self.end - len(actual), self.end)
        both = np.minimum(*(np.bincount(each % lanes, minlength=lanes) for each in (actual, counted)))
        matched = [_matched_first(actual, turns, both), _matched_first(counted, np.arange(len(actual)) // lanes, both)]
        left = np.empty_like(actual)
        left[matched[1]] = actual[matched[0]]
        return left

    def resolve(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The positions of the stream that ``positions`` of the next stage stand for, (n,)."""
        before = self.end - len(self.left)
        resolved = positions.copy()
        within = (positions >= before) & (positions < self.end)
        resolved[within] = self.left[positions[within] - before]
        return resolved


def _matched_first(
    positions: NDArray[np.int64], turns: NDArray[np.int64], both: NDArray[np.int64]
) -> NDArray[np.int64]:
    """An order of ``positions`` in which the first ones of each lane, which ``both`` sides have, come lane by lane."""
    lanes = positions % len(both)
    return np.lexsort((positions, lanes, turns >= both[lanes]))


Unfinished = dict[str, Part]  # by domain


def of_plan(plan: RoundPlan, sample: int, domains: Sequence[str]) -> Unfinished:
    """What a run that ends at ``sample`` leaves of ``plan``'s round."""
    taken = plan.taken_at(sample).tolist()
    parts = zip(domains, plan.used, plan.counts.tolist(), taken, strict=True)
    return {domain: Part(begin, samples, each) for domain, begin, samples, each in parts}


def still_needed(rounds: Sequence[Unfinished], used: Mapping[str, int]) -> list[Unfinished]:
    """Those of earlier stages' ``rounds``, oldest first, that positions from ``used`` on, by domain, can fall into."""
    needed: list[Unfinished] = []
    lowest = dict(used)
    for parts in reversed(rounds):
        if any(part.samples and lowest.get(domain, 0) < part.end for domain, part in parts.items()):
            needed.insert(0, parts)
            lowest |= {domain: min(lowest.get(domain, 0), part.begin) for domain, part in parts.items()}
    return needed


def to_plain(rounds: Sequence[Unfinished]) -> list[dict[str, Any]]:
    """As plain types, for a file."""
    return [{domain: asdict(part) for domain, part in parts.items()} for parts in rounds]


def from_plain(rounds: Sequence[Mapping[str, Mapping[str, Any]]]) -> list[Unfinished]:
    """Of :func:`to_plain`."""
    return [{domain: Part(**part) for domain, part in parts.items()} for parts in rounds]
