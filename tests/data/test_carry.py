from __future__ import annotations

import dataclasses
import json
import logging
import time

import numpy as np
import pytest

from llmshearing.data.carry import UNIT, apportion_carried, owed_for
from llmshearing.data.plan import RoundPlan
from llmshearing.data.proportions import apportion
from llmshearing.data.resume import DataShape, restore_plan, save_state

PAPER = (0.67, 0.15, 0.09, 0.0297, 0.03, 0.03, 0.0003)


def plan_of(proportions: np.ndarray | tuple[float, ...], size: int, **fields: object) -> RoundPlan:
    shares = tuple(np.asarray(proportions, float).tolist())
    return RoundPlan(0, 0, size, shares, (0,) * len(shares), seed=1, **fields)  # type: ignore[arg-type]


def allowed(proportions: np.ndarray) -> np.ndarray:
    """How far a domain may be from its share, as ``apportion_carried`` has it."""
    return 1 + np.asarray(proportions) * (len(proportions) / 2 + 1 / 256)


def test_a_share_of_less_than_a_sample_is_paid_over_the_rounds() -> None:
    used = plan_of(PAPER, 1600).following(rounds=64).used
    assert used[-1] in (30, 31)  # 30.7
    plan = plan_of(PAPER, 1600)
    for _ in range(64):
        assert plan.counts[-1] in (0, 1)
        plan = plan.following()
    assert plan.used == used


def test_equal_domains_take_turns() -> None:
    plan = plan_of([1 / 1000] * 1000, 12_800)
    for _ in range(4):
        plan = plan.following()
        assert max(plan.used) - min(plan.used) <= 1


def test_equal_domains_beside_a_large_one_do_not_crowd_it_out() -> None:
    shares = np.array([0.5] + [0.5 / 39] * 39)
    for n in range(200):
        counts, _ = apportion_carried(n, shares, (0,) * 40)
        assert (np.abs(counts - n * shares) < 2).all()


def test_shares_of_whole_samples_are_exact_and_equal_remainders_go_round() -> None:
    assert apportion_carried(100, [0.29, 0.355, 0.355], (0, 0, 0))[0].tolist() in ([29, 36, 35], [29, 35, 36])
    assert apportion_carried(200, [0.5, 0.3, 0.2], (0, 0, 0))[0].tolist() == [100, 60, 40]
    plan, seen = plan_of([1 / 3] * 3, 10), []
    for _ in range(3):
        seen.append(plan.counts.tolist())
        plan = plan.following()
    assert seen == [[4, 3, 3], [3, 4, 3], [3, 3, 4]]


def test_any_shares_with_changes_stay_near_what_is_due() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        domains, size = int(rng.integers(1, 30)), int(rng.integers(1, 300))
        plan, due = plan_of(rng.dirichlet(np.full(domains, 0.3)), size), np.zeros(domains)
        widest = np.zeros(domains)  # the largest share a domain had so far: the more, the further off it may be
        for _ in range(40):
            shares = np.array(plan.proportions)
            assert plan.counts.sum() == size
            assert (plan.counts >= 0).all()
            assert (plan.counts[apportion(UNIT, shares) == 0] == 0).all()
            due += size * shares
            widest = np.maximum(widest, shares)
            change = rng.dirichlet(np.full(domains, 0.3)) if rng.random() < 0.3 else None
            plan = plan.following(change)
            assert sum(plan.owed) == 0
            np.testing.assert_allclose(np.array(plan.owed) / UNIT, due - plan.used, atol=1e-6)
            assert (np.abs(due - plan.used) < 1 + widest * 2 * domains).all()


def test_unchanged_shares_stay_within_the_bound_at_every_sample() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        shares = rng.dirichlet(np.full(int(rng.integers(1, 40)), 0.3))
        for n in (*range(60), 10**6 + 1, 10**13 + 7):
            counts, _ = apportion_carried(n, shares, (0,) * len(shares))
            exact = [n * weight / UNIT for weight in apportion(UNIT, shares).tolist()]
            assert counts.sum() == n
            assert (np.abs(counts - np.array(exact)) <= allowed(shares) + 1e-2).all()


def test_a_held_plan_jumps_to_where_single_rounds_lead() -> None:
    rng = np.random.default_rng(2)
    for _ in range(30):
        domains, size = int(rng.integers(1, 12)), int(rng.integers(1, 40))
        first = plan_of(rng.dirichlet(np.full(domains, 0.4)), size).following(rng.dirichlet(np.full(domains, 0.4)))
        held = stepped = dataclasses.replace(first, held=True)
        for number in range(1, 40):
            stepped = stepped.following()
            assert held.covering(first.begin + number * size) == stepped
        far = held.following(rounds=10**6 - 3)
        assert far.following(rounds=2).following() == held.covering(first.begin + 10**6 * size)


def test_a_jump_of_a_million_rounds_takes_no_time() -> None:
    held = plan_of(np.random.default_rng(3).dirichlet(np.ones(40)), 102_400, held=True)
    began = time.perf_counter()
    far = held.covering(10**6 * held.size)
    assert time.perf_counter() - began < 0.1
    assert far is not None
    assert (np.abs(np.array(far.used) - 10**6 * held.size * np.array(held.proportions)) < 5).all()


NAMES = ("a", "b", "c", "d", "e", "f", "g")
SHAPE = DataShape(NAMES, "data", 50, 32, shuffle_seed=1, shuffle_block_size=40, shards=NAMES, first={})


@pytest.mark.parametrize("into", [0, 1, 777, 1599, 1600])
def test_a_checkpoint_within_a_round_restores_what_is_owed(into: int) -> None:
    rng = np.random.default_rng(4)
    plan = plan_of(PAPER, 1600, batch_size=32).following(rng.dirichlet(np.ones(7))).following(rng.dirichlet(np.ones(7)))
    assert any(plan.owed)
    state = json.loads(json.dumps(save_state(plan, plan.begin + into, SHAPE)))
    assert restore_plan(state, SHAPE) == plan


def test_a_checkpoint_from_before_the_carry_ends_its_round_as_it_began(caplog: pytest.LogCaptureFixture) -> None:
    counts = apportion(1600, PAPER)
    plan = dataclasses.replace(plan_of(PAPER, 1600), number=3, begin=4800, used=tuple((3 * counts).tolist()))
    old = dataclasses.replace(plan, owed=owed_for(counts.tolist(), PAPER))  # laid out as that version did
    assert old.counts.tolist() == counts.tolist()
    for into in (0, 500):
        state = save_state(old, 4800 + into, SHAPE)
        del state["owed"]
        with caplog.at_level(logging.WARNING, logger="llmshearing"):
            restored = restore_plan(state, SHAPE)
        assert "did not carry its rounding" in caplog.text
        assert restored.used == plan.used
        if into:
            assert restored.counts.tolist() == counts.tolist()
            assert not any(restored.following().owed)
        else:
            assert not any(restored.owed)
