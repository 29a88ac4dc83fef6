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
_SPLIT = 24  # binary digits of a share that are multiplied on their own, to stay within 64


def apportion_carried(
    n: int, proportions: ArrayLike, owed: Sequence[int], *, unit: int = 1
) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """Split ``n`` samples by ``proportions`` and by what earlier splits left ``owed``.

    While proportions stay as they are, every domain is at all times within ``1 + share * (domains / 2 + 1/256)`` units
    of its share of all samples so far, and never far from that after changes: what is owed is paid first.

    Args:
        n: how many samples to split, a multiple of ``unit``.
        proportions: share of each domain, (domains,), summing to 1. A domain without one gets nothing.
        owed: parts of a sample (:data:`UNIT`) that each domain is short of its share, (domains,); negative where it
            had too many.
        unit: samples that are given together.

    Returns:
        Counts, (domains,) int64, multiples of ``unit`` that sum to ``n``; and what is owed after them, (domains,), with
        the same sum as before. Splitting ``n`` and then ``m`` gives together what splitting ``n + m`` does.

    Raises:
        InputError: see :func:`~llmshearing.data.proportions.apportion`.
    """
    settings.whole("n", n)
    weights: list[int] = apportion(UNIT, proportions).tolist()
    domains = len(weights)
    # Phases are spread, so that domains of equal shares take turns rather than all being due at once.
    phases = [unit * UNIT * (2 * (domains - index) - 1) // (2 * domains) for index in range(domains)]
    # The search is for a time near n, and in 64 bits: what is due at n itself is taken out of it in longer numbers.
    terms = [weight * n + debt + phase for weight, debt, phase in zip(weights, owed, phases, strict=True)]
    whole = np.array([term // (unit * UNIT) for term in terms], np.int64)
    left = np.array([term % (unit * UNIT) for term in terms], object) * _MOMENTS
    shares = np.array(weights, np.int64)
    low = (1 << _SPLIT) - 1
    split = [part.astype(np.int64) for part in (shares >> _SPLIT, shares & low, left >> _SPLIT, left & low)]

    def due(moments: int) -> NDArray[np.int64]:
        """Units of each domain so many moments after the time ``n``, (domains,)."""
        kind = np.int64 if abs(moments) < 1 << 63 - _SPLIT - 1 else object  # so far only for a share of next to nothing
        high, low, left_high, left_low = (part.astype(kind) for part in split)
        parts = high * moments + left_high + (low * moments + left_low >> _SPLIT)
        units = whole + (parts // (unit * UNIT * _MOMENTS >> _SPLIT)).astype(np.int64)
        return np.where(shares > 0, np.maximum(units, 0), 0)

    time = _last_time(lambda moments: int(due(moments).sum()) * unit <= n)
    counts = due(time)
    later = due(time + 1) - counts  # due at the next moment, of whom the first ones come first
    before = np.cumsum(later) - later
    counts = unit * (counts + np.clip(n // unit - int(counts.sum()) - before, 0, later))
    paid = zip(owed, weights, counts.tolist(), strict=True)
    return counts, tuple(debt + n * weight - count * UNIT for debt, weight, count in paid)


def _last_time(holds: Callable[[int], bool]) -> int:
    """The last whole number for which ``holds``, which it does up to some number and not beyond."""
    step, below = 1, 0
    while not holds(below):
        below, step = below - step, 2 * step
    step, above = 1, below + 1
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
