"""Stages that end within a round, and those that go on behind them."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmshearing.data.partial_rounds import Part, Unfinished, from_plain, to_plain
from llmshearing.data.plan import RoundPlan
from llmshearing.data.resume import DataShape, restore_plan, save_state
from llmshearing.data.start import order_of

NAMES = ("a", "b", "c")


def resolved(rounds: list[Unfinished], domain: str, positions: NDArray[np.int64]) -> list[int]:
    for parts in reversed(rounds):
        positions = parts[domain].resolve(positions)
    return positions.tolist()  # type: ignore[no-any-return]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    stages=st.lists(
        st.tuples(st.sampled_from([4, 8, 12, 16, 48]), st.integers(1, 12), st.integers(0, 25)), min_size=2, max_size=5
    ),
    sub_streams=st.sampled_from([2, 4, 16]),
)
def test_a_chain_of_stages_uses_each_sample_once(
    seed: int, stages: list[tuple[int, int, int]], sub_streams: int
) -> None:
    rng = np.random.default_rng(seed)
    used, rounds = (0, 0, 0), list[Unfinished]()
    seen: dict[str, list[int]] = {name: [] for name in NAMES}
    for index, (batch, interval, long) in enumerate(stages):
        shape = DataShape(
            NAMES, "", interval, batch, shuffle_seed=seed, shuffle_block_size=1, shards=NAMES, first={},
            sub_streams=sub_streams, most_sub_streams=(16, 16, 16), unfinished=to_plain(rounds),
        )  # fmt: skip
        shares = tuple(rng.dirichlet(np.ones(3)).tolist())
        sizes = {"size": shape.round_size, "batch_size": batch, "sub_streams": sub_streams}
        plan = RoundPlan(0, 0, proportions=shares, used=used, seed=seed, **sizes)  # type: ignore[arg-type]
        end = (1 + long * interval // 10) * batch
        if index == len(stages) - 1:  # the last one ends with its round, so that nothing is left
            end = -(-(end + 200) // plan.size) * plan.size
        while True:
            domains, positions = (part[: end - plan.begin] for part in plan.layout)
            for number, name in enumerate(NAMES):
                seen[name] += resolved(rounds, name, positions[domains == number])
            if plan.end >= end:
                break
            plan = plan.following(rng.dirichlet(np.ones(3)))
        state = json.loads(json.dumps(save_state(plan, end, shape)))
        assert restore_plan(state, shape) == plan
        order = order_of(state)
        assert order is not None
        used, rounds = tuple(state["samples_used"]), from_plain(order["unfinished"])
        for name, count in zip(NAMES, used, strict=True):
            assert len(seen[name]) == len(set(seen[name])) == count
            assert set(resolved(rounds, name, np.arange(count, count + 500))).isdisjoint(seen[name])
    for name, count in zip(NAMES, used, strict=True):
        expected = Counter(resolved(rounds, name, np.arange(count, count + 3000)) + seen[name])
        assert expected == Counter(range(count + 3000))


def test_most_of_what_is_left_is_read_by_the_lanes_whose_it_is() -> None:
    rng = np.random.default_rng(0)
    part = Part(5, 1600, (50 + rng.integers(-5, 6, 16)).tolist())
    counted = np.arange(part.end - len(part.left), part.end)
    assert np.mean(part.left % 16 == counted % 16) > 0.95
    assert sorted(part.left) == sorted(set(range(5, 1605)) - set(_taken(part)))


def _taken(part: Part) -> list[int]:
    return [
        position
        for lane, count in enumerate(part.taken)
        for position in range(part.begin + (lane - part.begin) % 16, part.end, 16)[:count]
    ]
