"""Power laws of a run's own losses, and the two rules for the mix that are made of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmshearing.data.forecast import (
    MIN_ROUNDS,
    ado_proportions,
    fit_losses,
    learning_preference,
    predicted_references,
)
from llmshearing.errors import InputError

SAMPLES = np.arange(100, 1100, 100)


def curves(*laws: tuple[float, float, float]) -> np.ndarray:
    """Losses at :data:`SAMPLES`, (rounds, domains), of laws ``irreducible, coefficient, exponent``."""
    return np.stack([floor + scale * SAMPLES**-power for floor, scale, power in laws], axis=1)


def test_laws_of_exact_curves_are_found() -> None:
    wanted = [(1.5, 8.0, 0.5), (2.0, 3.0, 0.1), (0.0, 9.0, 0.2)]
    for law, (floor, scale, power) in zip(fit_losses(SAMPLES, curves(*wanted)), wanted, strict=True):
        assert (law.irreducible, law.coefficient, law.exponent) == pytest.approx(
            (floor, scale, power), rel=1e-3, abs=0.01
        )
        assert law.rmse < 1e-6


def test_a_law_never_falls_below_nothing_and_one_of_rising_losses_is_level() -> None:
    steeper = 5.0 - np.log(SAMPLES) / 2  # a line in log n, which reaches zero
    rising = 2.0 + SAMPLES / 1000
    below, level = fit_losses(SAMPLES, np.stack([steeper, rising], axis=1))
    assert below.irreducible == 0
    assert below(1e12) > 0
    assert level.coefficient == 0
    assert level(1e12) == pytest.approx(rising.mean())


def test_predictions_meet_the_curve_at_the_end_of_training() -> None:
    losses = curves((1.5, 8.0, 0.5), (2.0, 3.0, 0.2))
    found = predicted_references(SAMPLES, losses, 10_000)
    assert found == pytest.approx([1.5 + 8.0 * 10_000**-0.5, 2.0 + 3.0 * 10_000**-0.2], abs=1e-3)
    assert predicted_references(SAMPLES, losses, np.inf) == pytest.approx([1.5, 2.0], abs=1e-2)


def test_a_reference_is_only_ever_lowered() -> None:
    losses = curves((1.5, 8.0, 0.5), (2.0, 3.0, 0.2))
    given_ones = [1.0, 9.0]
    found = predicted_references(SAMPLES, losses, 10_000, given_ones)
    assert found[0] == 1.0
    assert found[1] == pytest.approx(2.0 + 3.0 * 10_000**-0.2, abs=1e-3)


def test_a_domain_that_gets_worse_is_expected_where_it_once_was() -> None:
    rising = (2.0 + SAMPLES / 1000)[:, None]
    assert predicted_references(SAMPLES, rising, 10_000) == pytest.approx([2.1])


@pytest.mark.parametrize("rounds", range(1, MIN_ROUNDS))
def test_too_few_evaluations_predict_nothing(rounds: int) -> None:
    losses = curves((1.5, 8.0, 0.5), (2.0, 3.0, 0.2))[:rounds]
    assert predicted_references(SAMPLES[:rounds], losses, 10_000) == pytest.approx(losses[-1])
    assert predicted_references(SAMPLES[:rounds], losses, 10_000, [1.0, 9.0]) == pytest.approx([1.0, 9.0])
    prior = learning_preference([0.3, 0.7], [0.5, 0.5], SAMPLES[:rounds], losses)
    assert prior == pytest.approx([0.3, 0.7])


def test_preference_is_prior_times_credit_times_speed() -> None:
    losses = curves((1.5, 8.0, 0.5), (2.0, 3.0, 0.2))
    prior, held = np.array([0.2, 0.8]), np.array([0.6, 0.4])
    speeds = np.array([0.5 * 8.0 * 1000**-1.5, 0.2 * 3.0 * 1000**-1.2])
    weights = prior * held**0.5 * speeds
    found = learning_preference(prior, held, SAMPLES, losses)
    assert found == pytest.approx(weights / weights.sum(), rel=1e-3)


def test_where_nothing_falls_the_prior_is_preferred() -> None:
    rising = np.stack([2.0 + SAMPLES / 1000, 3.0 + SAMPLES / 500], axis=1)
    assert learning_preference([0.3, 0.7], [0.5, 0.5], SAMPLES, rising) == pytest.approx([0.3, 0.7])


def test_the_policy_averages_preferences_and_keeps_a_floor() -> None:
    prior, preferences = [0.5, 0.5], [[0.9, 0.1], [1.0, 0.0]]
    found = ado_proportions(prior, preferences, prior, floor=0.01)
    assert found == pytest.approx([0.1 * 1.0 + 0.9 * (0.5 + 0.9) / 2, 0.9 * (0.5 + 0.1) / 2])
    starved = ado_proportions([1.0, 0.0], [[1.0, 0.0]], [1.0, 0.0], floor=0.01)
    assert starved == pytest.approx([0.99, 0.01])
    slow = ado_proportions(prior, preferences, prior, max_change=0.05)
    assert slow == pytest.approx([0.55, 0.45])
    with pytest.raises(InputError, match="floors must be at least 0 and sum to at most 1"):
        ado_proportions(prior, preferences, prior, floor=0.6)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 12))
def test_any_losses_give_a_distribution_and_references_above_nothing(seed: int, domains: int, rounds: int) -> None:
    rng = np.random.default_rng(seed)
    losses = rng.uniform(1e-4, 12.0, (rounds, domains)) * rng.choice([1e-3, 1.0], (rounds, domains))
    samples = np.cumsum(rng.integers(1, 10**9, rounds))
    prior, held = rng.dirichlet([0.3] * domains), rng.dirichlet([0.3] * domains)
    preference = learning_preference(prior, held, samples, losses)
    assert np.isfinite(preference).all()
    assert (preference >= 0).all()
    assert preference.sum() == pytest.approx(1)
    policy = ado_proportions(prior, [preference], held, floor=0.01)
    assert (policy >= 0.01 - 1e-12).all()
    assert policy.sum() == pytest.approx(1)
    references = predicted_references(samples, losses, 10.0 * samples[-1])
    assert np.isfinite(references).all()
    assert (references > 0).all()
    assert (references <= losses.min(axis=0) + 1e-3).all() or rounds < MIN_ROUNDS
