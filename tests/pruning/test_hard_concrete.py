from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from llmshearing.pruning.hard_concrete import LOG_ALPHA_MAX, LOG_ALPHA_MIN, deterministic, keep_probability, sample

# By hand: with log_alpha = 0 and u = 1/2 the sigmoid is 1/2, stretched to 0.5 * 1.2 - 0.1.
HAND_SAMPLES = [(0.0, 0.5, 0.5), (10.0, 0.5, 1.0), (-10.0, 0.5, 0.0), (0.0, 0.9, 1.0), (0.0, 0.1, 0.0)]


@pytest.mark.parametrize(("log_alpha", "u", "expected"), HAND_SAMPLES)
def test_samples_equal_those_computed_by_hand(log_alpha: float, u: float, expected: float) -> None:
    z = sample(torch.tensor([log_alpha], dtype=torch.float64), torch.tensor([u], dtype=torch.float64))
    assert z.item() == pytest.approx(expected, abs=1e-12)


def test_keep_probability_is_the_frequency_of_non_zero_samples() -> None:
    log_alpha = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0], dtype=torch.float64)
    u = torch.rand(200_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    frequency = (sample(log_alpha, u) > 0).double().mean(0)
    torch.testing.assert_close(keep_probability(log_alpha), frequency, atol=4e-3, rtol=0)


def test_keep_probability_at_zero_is_the_closed_form() -> None:
    expected = 1 / (1 + math.exp(2 / 3 * math.log(0.1 / 1.1)))
    assert keep_probability(torch.zeros(1, dtype=torch.float64)).item() == pytest.approx(expected, abs=1e-12)


def test_gradient_of_samples_is_zero_where_they_are_clamped() -> None:
    log_alpha = torch.tensor([8.0, 0.0, -8.0], requires_grad=True)
    sample(log_alpha, torch.full((3,), 0.5)).sum().backward()
    assert log_alpha.grad is not None
    assert log_alpha.grad[0] == 0
    assert log_alpha.grad[2] == 0
    assert log_alpha.grad[1] > 0


@pytest.mark.parametrize("num_kept", [1, 3, 7, 8])
def test_deterministic_keeps_exactly_the_best_units_of_every_group(num_kept: int) -> None:
    log_alpha = torch.randn(5, 2, 8, generator=torch.Generator().manual_seed(1))
    z = deterministic(log_alpha, num_kept)
    assert ((z != 0).sum(-1) == num_kept).all()
    worst_kept = torch.where(z != 0, log_alpha, torch.inf).amin(-1)
    best_dropped = torch.where(z == 0, log_alpha, -torch.inf).amax(-1)
    assert (worst_kept > best_dropped).all()


def test_deterministic_decides_ties_by_index_and_takes_a_count_per_group() -> None:
    z = deterministic(torch.zeros(2, 4), torch.tensor([1, 3]))
    assert (z != 0).tolist() == [[True, False, False, False], [True, True, True, False]]


def test_extreme_parameters_stay_finite() -> None:
    log_alpha = torch.tensor([LOG_ALPHA_MIN, LOG_ALPHA_MAX, 50.0, -50.0], requires_grad=True)
    for u in (0.0, 1.0):
        z = sample(log_alpha, torch.full((4,), u))
        (z.sum() + keep_probability(log_alpha).sum()).backward()
        assert torch.isfinite(z).all()
    assert log_alpha.grad is not None
    assert torch.isfinite(log_alpha.grad).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_golden_values_and_gradients_of_the_original(shared: Path, dtype: str) -> None:
    golden = json.loads((shared / "golden" / "hard_concrete.json").read_text())
    expected = {
        name: torch.tensor(v, dtype=getattr(torch, dtype)) for name, v in golden[dtype].items() if "2x8" not in name
    }
    weights = torch.tensor(golden["grad_weights"], dtype=getattr(torch, dtype))
    log_alpha = torch.tensor(golden["z_loga"], dtype=getattr(torch, dtype), requires_grad=True)

    keep = keep_probability(log_alpha)
    torch.testing.assert_close(keep, 1 - expected["cdf_qz"], atol=1e-6, rtol=0)
    (grad,) = torch.autograd.grad((keep * weights).sum(), log_alpha)
    torch.testing.assert_close(-grad, expected["cdf_qz_grad_zloga"], atol=1e-6, rtol=0)

    for number, noise in enumerate(golden["eps"]):
        z = sample(log_alpha, torch.tensor(noise, dtype=log_alpha.dtype))
        torch.testing.assert_close(z, expected["z_train"][number], atol=1e-6, rtol=0)
        (grad,) = torch.autograd.grad((z * weights).sum(), log_alpha)
        torch.testing.assert_close(grad, expected["z_train_grad_zloga"][number], atol=1e-6, rtol=0)

    torch.testing.assert_close(deterministic(log_alpha, 9), expected["z_det_target9"], atol=1e-6, rtol=0)
    rows = deterministic(log_alpha.view(2, 8), 5)
    by_row = torch.tensor(golden[dtype]["z_det_2x8_target5_per_row"], dtype=log_alpha.dtype).view(2, 8)
    torch.testing.assert_close(rows, by_row, atol=1e-6, rtol=0)
