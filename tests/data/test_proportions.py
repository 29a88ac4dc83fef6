from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llmshearing.data.proportions import apportion, effective_domains, excess_losses, update_proportions
from llmshearing.errors import InputError


def test_needs_no_composer() -> None:
    code = "import llmshearing.data.proportions, sys; assert not {'composer', 'streaming', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_reproduces_the_original_code(shared: Path) -> None:
    golden = json.loads((shared / "golden" / "update_proportion.json").read_text())
    cases = [case for case in golden["cases"] if case["update_type"] == "doremi"]
    assert len(cases) == 12
    for case in cases:
        updated = update_proportions(case["proportion"], case["losses"], case["target_loss"], clip=False)
        np.testing.assert_allclose(updated, case["new_proportion"], atol=1e-6, err_msg=case["note"])
    chain = golden["chain"]
    proportions = chain["start"]
    for expected in chain["props"]:
        proportions = update_proportions(proportions, chain["losses"], chain["target_loss"], clip=False)
        np.testing.assert_allclose(proportions, expected, atol=1e-6)


def test_clips_as_the_paper_does(shared: Path) -> None:
    expected = json.loads((shared / "golden" / "update_proportion.json").read_text())[
        "clipped_result_for_2_domain_case"
    ]
    np.testing.assert_allclose(update_proportions([0.5, 0.5], [2.0, 1.0], [1.5, 1.5]), expected, atol=1e-6)


def test_algorithm_1() -> None:
    updated = update_proportions([0.6, 0.4], [2.5, 1.0], [2.0, 1.5], smoothing=0.0)
    weights = np.array([0.6 * np.exp(0.5), 0.4])
    np.testing.assert_allclose(updated, weights / weights.sum(), rtol=1e-15)


def test_clipped_domains_below_their_reference_keep_their_ratio() -> None:
    updated = update_proportions([0.2, 0.3, 0.5], [1.0, 1.0, 3.0], [2.0, 5.0, 2.0], smoothing=0.0)
    assert updated[0] / updated[1] == pytest.approx(2 / 3, rel=1e-14)
    assert excess_losses([1.0, 3.0], [2.0, 2.5]).tolist() == [0.0, 0.5]


def test_huge_excess_does_not_overflow() -> None:
    updated = update_proportions([0.5, 0.5], [2000.0, 1.0], [1.0, 1.0])
    np.testing.assert_allclose(updated, [1 - 0.5e-4, 0.5e-4], rtol=1e-9)


def test_eta_scales_the_step() -> None:
    one = update_proportions([0.5, 0.5], [2.0, 1.0], [1.0, 1.0], eta=2.0)
    np.testing.assert_allclose(one, update_proportions([0.5, 0.5], [3.0, 1.0], [1.0, 1.0]), rtol=1e-15)


def test_floor_takes_from_the_others_in_proportion() -> None:
    settings = {"smoothing": 0.0, "floor": [0.1, 0.05, 0.0]}
    updated = update_proportions([0.02, 0.49, 0.49], [1.0] * 3, [1.0] * 3, **settings)
    np.testing.assert_allclose(updated, [0.1, 0.45, 0.45], rtol=1e-14)


def test_floor_that_pushes_another_domain_below_its_own() -> None:
    updated = update_proportions([0.01, 0.21, 0.78], [1.0] * 3, [1.0] * 3, smoothing=0.0, floor=0.2)
    np.testing.assert_allclose(updated, [0.2, 0.2, 0.6], rtol=1e-14)


def test_floor_holds_a_domain_up_for_good() -> None:
    proportions = np.array([0.4, 0.6])
    for _ in range(100):
        proportions = update_proportions(proportions, [1.0, 3.0], [1.0, 2.0], floor=0.05)
    assert proportions[0] == pytest.approx(0.05, rel=1e-9)


def test_max_change_shortens_the_update_as_a_whole() -> None:
    before = np.array([0.2, 0.3, 0.5])
    full = update_proportions(before, [4.0, 2.0, 1.0], [1.0, 1.0, 1.0]) - before
    limited = update_proportions(before, [4.0, 2.0, 1.0], [1.0, 1.0, 1.0], max_change=0.1) - before
    assert np.abs(limited).max() == pytest.approx(0.1)
    np.testing.assert_allclose(limited / np.abs(limited).max(), full / np.abs(full).max(), rtol=1e-12)
    assert update_proportions(before, [1.0] * 3, [1.0] * 3, smoothing=0.0, max_change=0.1).tolist() == before.tolist()


def test_result_is_a_distribution() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        n = int(rng.integers(1, 12))
        updated = update_proportions(
            rng.dirichlet(np.ones(n)), rng.normal(2, 1, n), rng.normal(2, 1, n), clip=bool(rng.integers(2)), floor=0.01
        )
        assert updated.dtype == np.float64
        assert updated.sum() == pytest.approx(1, abs=1e-12)
        assert (updated >= 0.01 - 1e-12).all()


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (([0.5, 0.5], [1.0, float("nan")], [1.0, 1.0]), {}, "losses must be finite"),
        (([0.5, 0.5], [1.0, 1.0], [1.0, float("inf")]), {}, "reference_losses must be finite"),
        (([0.5, 0.5], [1.0], [1.0, 1.0]), {}, "one number for each of the 2 domains"),
        (([0.5, 0.6], [1.0, 1.0], [1.0, 1.0]), {}, "sum to 1.1"),
        (([1.5, -0.5], [1.0, 1.0], [1.0, 1.0]), {}, "at least 0"),
        (([0.5, 0.5], [1.0, 1.0], [1.0, 1.0]), {"floor": 0.6}, "sum to at most 1"),
        (([0.5, 0.5], [1.0, 1.0], [1.0, 1.0]), {"floor": [-0.1, 0.1]}, "at least 0"),
    ],
)
def test_refuses(arguments: tuple[list[float], ...], settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        update_proportions(*arguments, **settings)


def test_apportion_is_within_one_and_exact_in_sum() -> None:
    rng = np.random.default_rng(1)
    for _ in range(500):
        proportions = rng.dirichlet(np.full(int(rng.integers(1, 20)), 0.3))
        n = int(rng.integers(0, 5000))
        counts = apportion(n, proportions)
        assert counts.sum() == n
        assert (np.abs(counts - n * proportions) < 1).all()


def test_apportion_gives_the_largest_remainders_the_rest() -> None:
    assert apportion(10, [0.36, 0.33, 0.31]).tolist() == [4, 3, 3]
    assert apportion(10, [1 / 3, 1 / 3, 1 / 3]).tolist() == [4, 3, 3]
    assert apportion(7, [0.0, 1.0]).tolist() == [0, 7]


def test_apportion_is_not_misled_by_rounding() -> None:
    assert 100 * 0.29 < 29  # a share that is a whole number but for its last bit
    assert apportion(100, [0.29, 0.355, 0.355]).tolist() == [29, 36, 35]


def test_effective_domains() -> None:
    assert effective_domains([0.25] * 4) == pytest.approx(4)
    assert effective_domains([1.0, 0.0]) == pytest.approx(1)
