from __future__ import annotations

import numpy as np
import pytest

from llmshearing.data.plan import RoundPlan
from llmshearing.data.proportions import apportion


def plan(**changes: object) -> RoundPlan:
    fields = {
        "number": 3,
        "begin": 600,
        "size": 200,
        "proportions": (0.5, 0.3, 0.2),
        "used": (300, 180, 120),
        "seed": 1,
    }
    return RoundPlan(**{**fields, **changes})  # type: ignore[arg-type]


def test_layout_holds_the_next_samples_of_each_domain_in_order() -> None:
    domains, positions = plan().layout
    for index, (begin, count) in enumerate(zip(plan().used, apportion(200, plan().proportions), strict=True)):
        assert np.array_equal(positions[domains == index], np.arange(begin, begin + count))


def test_layout_mixes_the_domains() -> None:
    domains, _ = plan().layout
    for batch in domains.reshape(4, 50):
        assert (np.bincount(batch, minlength=3) > 2).all()


def test_layout_differs_by_round_and_seed() -> None:
    domains, _ = plan().layout
    for other in (plan(number=4), plan(seed=2)):
        assert not np.array_equal(other.layout[0], domains)


def test_a_domain_without_a_share_gets_nothing() -> None:
    domains, _ = plan(proportions=(0.5, 0.0, 0.5)).layout
    assert set(domains.tolist()) == {0, 2}


def test_following_carries_the_counts_on() -> None:
    later = plan().following([0.2, 0.2, 0.6])
    assert (later.number, later.begin, later.end) == (4, 800, 1000)
    assert later.used == (400, 240, 160)
    assert later.counts.tolist() == [40, 40, 120]
    assert plan().following().following() == plan().following(rounds=2)


def test_used_at_counts_what_was_laid_out() -> None:
    domains, _ = plan().layout
    for sample in (600, 601, 677, 799, 800):
        expected = np.array([300, 180, 120]) + np.bincount(domains[: sample - 600], minlength=3)
        assert plan().used_at(sample).tolist() == expected.tolist()


@pytest.mark.parametrize("held", [False, True])
def test_covering(held: bool) -> None:
    current = plan(held=held)
    assert current.covering(599) is None
    assert current.covering(600) == current.covering(799) == current
    assert current.covering(800) == (current.following() if held else None)
    assert current.covering(1399) == (current.following(rounds=3) if held else None)
