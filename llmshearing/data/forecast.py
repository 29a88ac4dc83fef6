"""Where each domain's loss is going, and what that says about the next round's mix.

Two rules beside Algorithm 1, both from power laws ``L(n) = E + b n^-a`` fitted to a run's own evaluations:

predicted references
    Algorithm 1 with the loss that each domain is on its way to (DRPruning, Deng et al. 2024, arXiv 2411.14055,
    section 3), so that no other models have to be evaluated beforehand.
ado
    Adaptive Data Optimization (Jiang et al. 2024, arXiv 2410.11820, section 3 and algorithm 1): domains by how fast
    their loss falls now; no references at all.

``n`` is the number of samples that the run has trained on, of all domains, since they teach each other; ADO's
experiments count like that as well. Plain numpy on sequences in domain order; nothing here knows about Composer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmshearing.data.proportions import distribution, within_limits
from llmshearing.power_law import PowerLaw, fit_power_law

MIN_ROUNDS = 4  # evaluations before a law is believed: one more than it has parameters
EXPONENTS = (0.05, 0.8)  # as ADO bounds them
PREDICTED_TO = 1e-3  # nats; a reference is never below


def fit_losses(samples: ArrayLike, losses: ArrayLike) -> list[PowerLaw]:
    """The law of each domain's loss; one that no training can lower, where the losses rise.

    Args:
        samples: samples trained on at each evaluation, (rounds,), rising, from 1.
        losses: nats per token, (rounds, domains), above 0.
    """
    counts = np.asarray(samples, np.float64)
    return [_falling_law(counts, column) for column in np.asarray(losses, np.float64).T]


def _falling_law(samples: NDArray[np.float64], losses: NDArray[np.float64]) -> PowerLaw:
    law = fit_power_law(samples, losses, exponents=EXPONENTS)
    if law.coefficient <= 0:
        return PowerLaw(float(losses.mean()), 0.0, EXPONENTS[0], float(losses.std()))
    if law.irreducible >= 0:
        return law
    # Without the first term the law is a straight line in log n, log loss.
    slope, _ = np.polyfit(np.log(samples), np.log(np.maximum(losses, PREDICTED_TO)), 1)
    exponent = float(np.clip(-slope, *EXPONENTS))
    powers = samples**-exponent
    coefficient = float(powers @ losses / (powers @ powers))
    rmse = float(np.sqrt(np.mean((losses - coefficient * powers) ** 2)))
    return PowerLaw(0.0, coefficient, exponent, rmse)


def predicted_references(
    samples: ArrayLike, losses: ArrayLike, end: float, references: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Reference losses for :func:`~llmshearing.data.proportions.update_proportions`, from the run so far.

    The law's value at the end of training, and at most the lowest loss so far; where references are given, the lower
    of both. Before :data:`MIN_ROUNDS` evaluations the given ones or, without them, the last losses, which leaves the
    mix as it is.

    Args:
        samples: samples trained on at each evaluation, (rounds,), rising, from 1.
        losses: nats per token, (rounds, domains), above 0.
        end: samples at the end of training; may be infinite.
        references: nats per token, (domains,). ``None``: none.

    Returns:
        Nats per token, (domains,).
    """
    measured = np.asarray(losses, np.float64)
    given = None if references is None else np.asarray(references, np.float64)
    if len(measured) < MIN_ROUNDS:
        return measured[-1] if given is None else given
    laws = fit_losses(samples, measured)
    predicted = np.maximum(np.minimum([law(end) for law in laws], measured.min(axis=0)), PREDICTED_TO)
    return predicted if given is None else np.minimum(given, predicted)


def learning_preference(
    prior: ArrayLike, proportions: ArrayLike, samples: ArrayLike, losses: ArrayLike, *, credit: float = 0.5
) -> NDArray[np.float64]:
    """ADO's preference ``rho``: prior times credit times the speed at which the domain's loss falls.

    Credit is ``h ** credit`` with ``h`` the recent proportions: a loss that falls is a domain's own doing only as far
    as it was trained on. ADO averages ``h`` over some ten batches, within one of our rounds, so it is the round's.

    Args:
        prior: the mix before ADO, (domains,), summing to 1.
        proportions: what the last round held, (domains,), summing to 1.
        samples: samples trained on at each evaluation, (rounds,), rising, from 1.
        losses: nats per token, (rounds, domains), above 0.
        credit: exponent of the credit.

    Returns:
        (domains,), summing to 1; the prior before :data:`MIN_ROUNDS` evaluations, and where no loss falls.
    """
    first, held = distribution(prior), distribution(proportions)
    measured = np.asarray(losses, np.float64)
    if len(measured) < MIN_ROUNDS:
        return first
    now = float(np.asarray(samples, np.float64)[-1])
    laws = fit_losses(samples, measured)
    speeds = np.array([law.exponent * law.coefficient * now ** (-law.exponent - 1.0) for law in laws])
    weights = first * held**credit * (speeds / max(speeds.max(), 1e-300))
    return first if not weights.sum() else weights / weights.sum()


def ado_proportions(
    prior: ArrayLike, preferences: ArrayLike, proportions: ArrayLike, *, newest: float = 0.1, **limits: Any
) -> NDArray[np.float64]:
    """ADO's policy ``pi`` for the next round: mostly the average of the preferences before, a little of the newest.

    Args:
        prior: the mix before ADO, (domains,), summing to 1; counts as one preference.
        preferences: :func:`learning_preference` at each round's end so far, (rounds, domains).
        proportions: what the last round held, (domains,), summing to 1.
        newest: weight of the newest preference.
        limits: ``floor`` and ``max_change`` of :func:`~llmshearing.data.proportions.within_limits`.
    """
    rows = np.vstack([np.asarray(prior, np.float64), np.asarray(preferences, np.float64)])
    policy = newest * rows[-1] + (1.0 - newest) * rows[:-1].mean(axis=0)
    return within_limits(policy / policy.sum(), distribution(proportions), **limits)
