"""How much of each domain the next round holds: Algorithm 1 of Sheared LLaMA (Xia et al. 2023, section 2.2).

Plain numpy on sequences in domain order; nothing here knows about Composer, streaming or files.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmshearing.data import settings
from llmshearing.errors import InputError


def excess_losses(losses: ArrayLike, reference_losses: ArrayLike, *, clip: bool = True) -> NDArray[np.float64]:
    """How far each domain is above its reference, in nats: Algorithm 1, line 4.

    Args:
        losses: evaluation loss per domain, nats per token, (domains,).
        reference_losses: what each domain is expected to reach, nats per token, (domains,).
        clip: count a domain that is below its reference as zero, as the paper does. Without it, as in the paper's
            code, such domains shrink towards nothing.
    """
    difference = np.asarray(losses, np.float64) - np.asarray(reference_losses, np.float64)
    return np.maximum(difference, 0.0) if clip else difference


def update_proportions(
    proportions: ArrayLike,
    losses: ArrayLike,
    reference_losses: ArrayLike,
    *,
    clip: bool = True,
    eta: float = 1.0,
    smoothing: float = 1e-4,
    floor: ArrayLike = 0.0,
    max_change: float | None = None,
) -> NDArray[np.float64]:
    """The proportions of the next round: Algorithm 1, lines 4 to 6.

    ``p * exp(eta * difference)``, normalised, then ``smoothing`` of the whole shared out evenly, then ``floor``, then
    ``max_change``. With ``clip=False`` and the default smoothing this is the update of the paper's published code.

    Args:
        proportions: what the last round held, (domains,), summing to 1.
        losses: evaluation loss per domain, nats per token, (domains,).
        reference_losses: what each domain is expected to reach, nats per token, (domains,).
        clip: see :func:`excess_losses`.
        eta: step size of the exponentiated update; the paper's is 1.
        smoothing: share of the whole that is distributed evenly, so that no domain starves for good.
        floor: the least any domain may get, one number or one per domain. What it adds to domains below it comes
            from the others in proportion.
        max_change: the most that any domain's proportion may move in one update; a larger update is shortened as a
            whole, so its direction stays. ``None``: no limit.

    Returns:
        The new proportions, (domains,) float64, summing to 1.

    Raises:
        InputError: shapes differ, a loss or reference is not finite, proportions are not a distribution, a setting is
            out of range, or the floors do not fit under 1.
    """
    current = distribution(proportions)
    settings.flag("clip", clip)
    settings.number("eta", eta)
    settings.number("smoothing", smoothing, most=1)
    for name, values in (("losses", losses), ("reference_losses", reference_losses)):
        array = _numbers(name, values)
        if array.shape != current.shape:
            raise InputError(f"{name} must hold one number for each of the {len(current)} domains, not {array.shape}.")
        if not np.isfinite(array).all():
            raise InputError(f"{name} must be finite, not {array.tolist()}.")
    exponent = eta * excess_losses(losses, reference_losses, clip=clip)
    updated = current * np.exp(exponent - exponent.max())  # the shift cancels in the ratio and prevents overflow
    updated = (1.0 - smoothing) * updated / updated.sum() + smoothing / len(current)
    return within_limits(updated / updated.sum(), current, floor=floor, max_change=max_change)


def within_limits(
    updated: ArrayLike, current: ArrayLike, *, floor: ArrayLike = 0.0, max_change: float | None = None
) -> NDArray[np.float64]:
    """Raise an update to its floor, then shorten it; see :func:`update_proportions`.

    Args:
        updated: proportions to come, (domains,), summing to 1.
        current: those in force, (domains,), summing to 1.

    Raises:
        InputError: the floors do not fit under 1, or ``max_change`` is out of range.
    """
    before = np.asarray(current, np.float64)
    after = _raise_to_floor(np.asarray(updated, np.float64), floor)
    if max_change is not None:
        settings.number("max_change", max_change, above=True)
        largest = np.abs(after - before).max()
        after = before + (after - before) * min(1.0, max_change / max(largest, 1e-300))
    result: NDArray[np.float64] = after / after.sum()
    return result


def apportion(n: int, proportions: ArrayLike) -> NDArray[np.int64]:
    """Split ``n`` samples by ``proportions``, each count within one of ``n * proportion`` (largest remainder).

    Args:
        n: how many samples to split.
        proportions: share of each domain, (domains,), summing to 1.

    Returns:
        Counts, (domains,) int64, summing to ``n``. Of equal remainders the earlier domain wins.

    Raises:
        InputError: ``n`` is no number of samples, or ``proportions`` is not a distribution.
    """
    settings.whole("n", n)
    shares = n * distribution(proportions)
    # A share like 2.9999999999999996 is 3 with a rounding error, not 2 with the largest remainder of all.
    counts = np.floor(shares + 1e-9)
    missing = n - int(counts.sum())
    largest_first = np.argsort(counts - shares, kind="stable")
    counts[largest_first[:missing]] += 1
    return counts.astype(np.int64)


def distribution(proportions: ArrayLike) -> NDArray[np.float64]:
    """``proportions`` as a float64 array that sums to 1 exactly.

    Raises:
        InputError: an entry is negative or not finite, or the sum is further than 1e-3 from 1.
    """
    array = _numbers("proportions", proportions)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all() or (array < 0).any():
        raise InputError(f"proportions must be a row of numbers of at least 0, not {array.tolist()}.")
    if abs(array.sum() - 1.0) > 1e-3:
        raise InputError(f"proportions must sum to 1, but {array.tolist()} sum to {array.sum():g}.")
    return array / array.sum()


def _numbers(key: str, values: ArrayLike) -> NDArray[np.float64]:
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{key}: {values!r} is not made of numbers.") from error


def effective_domains(proportions: ArrayLike) -> float:
    """The perplexity of the mix: equal to the number of domains when it is even, 1 when it is all one domain."""
    shares = np.asarray(proportions, np.float64)
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _raise_to_floor(proportions: NDArray[np.float64], floor: ArrayLike) -> NDArray[np.float64]:
    given = _numbers("floor", floor)
    if given.shape not in ((), proportions.shape):
        raise InputError(f"floor: {floor!r} is neither one number nor one for each of {len(proportions)} domains.")
    floors: NDArray[np.float64] = np.broadcast_to(given, proportions.shape)
    if not (floors >= 0).all() or floors.sum() > 1.0:
        raise InputError(f"The floors must be at least 0 and sum to at most 1, but {floors.tolist()} do not.")
    at_floor = np.zeros(len(proportions), bool)
    while ((below := proportions < floors) & ~at_floor).any():
        # Taking from the others may push one of them below its own floor: repeat until none is left.
        at_floor |= below
        rest = np.where(at_floor, 0.0, proportions)
        scale = (1.0 - floors[at_floor].sum()) / rest.sum() if rest.sum() else 0.0
        proportions = np.where(at_floor, floors, rest * scale)
    return proportions
