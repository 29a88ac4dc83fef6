from __future__ import annotations

import multiprocessing
from multiprocessing.context import BaseContext

import pytest
from torch.utils.data._utils import worker
from torch.utils.data._utils.worker import WorkerInfo

from llmshearing.data.plan import RoundPlan
from llmshearing.data.rounds import Rounds
from llmshearing.errors import InputError


def rounds(domains: int = 2, **settings: float) -> Rounds:
    plan = RoundPlan(0, 0, 20, (1 / domains,) * domains, (0,) * domains, seed=5)
    return Rounds(plan, **{"timeout": 5.0, **settings})


def test_update_opens_the_next_round() -> None:
    shared = rounds()
    shared.wait_for(19)
    with pytest.raises(InputError, match="Round 0 is over at sample 20"):
        shared.wait_for(20)
    shared.update([0.25, 0.75])
    shared.wait_for(20)
    assert shared._newest == RoundPlan(1, 20, 20, (0.25, 0.75), (10, 10), seed=5)


def test_a_held_plan_has_no_end() -> None:
    shared = rounds()
    shared.hold()
    shared.wait_for(10**9)
    assert shared.at(50).number == 2
    assert shared.at(50).used == (20, 20)


def test_at_an_edge_the_new_plan_is_in_force_once_it_exists() -> None:
    shared = rounds()
    assert shared.at(20).number == 0
    shared.update([0.25, 0.75])
    assert shared.at(20).number == 1
    with pytest.raises(InputError, match="Training is at sample 41, but the data at round 1"):
        shared.at(41)


def test_in_the_training_process_a_missing_plan_is_an_error_at_once() -> None:
    with pytest.raises(InputError, match="Add DynamicBatchLoading to the callbacks"):
        rounds(timeout=1e9).wait_for(20)


def test_beginning_again_behind_the_plan_is_an_error() -> None:
    shared = rounds()
    shared.update([0.5, 0.5])
    with pytest.raises(InputError, match="began again at sample 3"):
        shared.wait_for(3)


def _wait(shared: Rounds, sample: int) -> None:
    worker._worker_info = WorkerInfo(id=0, num_workers=1, seed=0, dataset=None)
    shared.wait_for(sample)


@pytest.mark.parametrize("watched", [False, True])
def test_a_worker_waits_so_long_or_until_told(watched: bool) -> None:
    shared = rounds(timeout=0.2)
    shared.open(watched=watched)
    process = multiprocessing.get_context("fork").Process(target=_wait, args=(shared, 20))
    process.start()
    process.join(1.5)
    assert (process.exitcode is None) == watched
    shared.update([0.5, 0.5])
    process.join()
    assert process.exitcode == (0 if watched else 1)


def test_closing_ends_a_wait_until_opened() -> None:
    shared = rounds()
    shared.close()
    assert shared.wait_for(20) is None
    assert shared.wait_for(19) is not None
    assert shared.open() == 0
    with pytest.raises(InputError):
        shared.wait_for(20)


def test_long_names_and_many_domains_fit() -> None:
    shared = rounds(domains=500)
    for _ in range(3):
        shared.update([1 / 500 * (1 + (-1) ** i * 1e-9) for i in range(500)])
    assert shared._newest.number == 3


def _write(shared: Rounds, updates: int) -> None:
    for number in range(updates):
        shared.update([0.5 + 1e-7 * number, 0.5 - 1e-7 * number])


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_reader_never_sees_half_a_plan(method: str) -> None:
    context: BaseContext = multiprocessing.get_context(method)
    shared = rounds()
    writer = context.Process(target=_write, args=(shared, 3000))  # type: ignore[attr-defined]
    writer.start()
    seen = set()
    while (plan := shared._newest).number < 3000:
        if plan.number:
            assert plan.proportions[0] == pytest.approx(0.5 + 1e-7 * (plan.number - 1), abs=1e-12)
        assert plan.begin == 20 * plan.number
        assert sum(plan.used) == plan.begin
        seen.add(plan.number)
    writer.join()
    assert writer.exitcode == 0
    assert len(seen) > 10
