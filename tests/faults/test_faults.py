"""The short form of ``python -m tests.faults``: real work killed at random moments ends as undisturbed work does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.campaign import campaign, compare, run
from tests.faults.scenarios import SCENARIOS, Scenario, make_scenarios
from tests.forkserver import ForkServer

KILLS = 4


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory, forked: ForkServer) -> dict[str, Scenario]:
    folder = tmp_path_factory.mktemp("faults") / "inputs"
    return make_scenarios(folder, lambda scenario, work: run(forked, scenario, work))


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_anywhere_it_ends_as_undisturbed(
    name: str, scenarios: dict[str, Scenario], forked: ForkServer, tmp_path: Path
) -> None:
    found = campaign(forked, scenarios[name], tmp_path, kills=KILLS, seed=0, report=print)
    assert found.failures == []
    assert found.kills == KILLS


def test_what_differs_is_named() -> None:
    assert compare({"a": 1, "b": 2}, {"a": 1, "b": 2}) == []
    assert compare({"a": 1, "b": 2}, {"a": 3, "c": 2}) == ["b is missing", "c is left over", "a differs"]
