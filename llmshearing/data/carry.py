"""Splitting round after round by shares that seldom come to whole samples: what one rounds off, another makes up for.

    owed by domain   share of all rounds so far - samples of all rounds so far
    sample k is due  when share * time + owed reaches k - phase
    a round          takes the samples that are due first

Since every sample has its time, a round depends only on what is owed when it begins, many rounds with the same shares
are taken at once as exactly as one by one, and no round ever takes back what an earlier one gave. Divisor methods of
apportionment (Webster, Sainte-Lague) are the same thing without the debts. Shares and debts are whole numbers of a
small unit, so there is no rounding in them, on any machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmshearing.data import settings
from llmshearing.data.proportions import apportion

UNIT = 1 << 48  # parts of a sample; a share is a whole number of parts, and one below half a part is none
_MOMENTS = 256  # moments in the time of one sample; of what is due at the same one the first domains come first


def apportion_carried(n: int, proportions: ArrayLike, owed: Sequence[int]) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """Split ``n`` samples by ``proportions`` and by what earlier splits left ``owed``.

    While proportions stay as they are, every domain is at all times within ``1 + share * (domains / 2 + 1/256)``
    samples of its share of all samples so far, and never far from that after changes: what is owed is paid first.

    Args:
        n: how many samples to split.
        proportions: share of each domain, (domains,), summing to 1. A domain without one gets nothing.
        owed: parts of a sample (:data:`UNIT`) that each domain is short of its share, (domains,); negative where it
            had too many.

    Returns:
        Counts, (domains,) int64, summing to ``n``; and what is owed after them, (domains,), with the same sum as
        before. Splitting ``n`` and then ``m`` gives together what splitting ``n + m`` does.

    Raises:
        InputError: see :func:`~llmshearing.data.proportions.apportion`.
    """
    settings.whole("n", n)
    weights: list[int] = apportion(UNIT, proportions).tolist()
    domains = len(weights)
    # Phases are spread, so that domains of equal shares take turns rather than all being due at once.
    phases = [UNIT * (2 * (domains - index) - 1) // (2 * domains) for index in range(domains)]
    terms = [(weight, (debt + phase) * _MOMENTS) for weight, debt, phase in zip(weights, owed, phases, strict=True)]

    def due(time: int) -> list[int]:
        return [max(0, (weight * time + ahead) // (UNIT * _MOMENTS)) if weight else 0 for weight, ahead in terms]

    time = _last_time(lambda time: sum(due(time)) <= n, near=n * _MOMENTS)
    counts = due(time)
    missing = n - sum(counts)  # of those due at the next moment the first ones come first
    for index, later in enumerate(due(time + 1)):
        taken = min(missing, later - counts[index])
        counts[index] += taken
        missing -= taken
    left = tuple(debt + n * weight - count * UNIT for debt, weight, count in zip(owed, weights, counts, strict=True))
    return np.array(counts, np.int64), left


def _last_time(holds: Callable[[int], bool], *, near: int) -> int:
    """The last whole number for which ``holds``, which it does up to some number and not beyond."""
    step, below = 1, near
    while not holds(below):
        below, step = below - step, 2 * step
    step, above = 1, max(near, below) + 1
    while holds(above):
        below, above, step = above, above + step, 2 * step
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if holds(middle) else (below, middle)
    return below


def owed_for(counts: Sequence[int], proportions: ArrayLike) -> tuple[int, ...]:
    """What has to be owed for a round to hold exactly ``counts``; nothing is owed after it.

    Args:
        counts: samples of each domain, (domains,), none where there is no share.
        proportions: share of each domain, (domains,).
    """
    n = sum(counts)
    weights = apportion(UNIT, proportions).tolist()
    return tuple(count * UNIT - n * weight for count, weight in zip(counts, weights, strict=True))
