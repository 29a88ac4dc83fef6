"""What long runs take: the page says what the unit costs come to."""

from __future__ import annotations

import dataclasses
import math

import pytest

from benchmarks import budget
from llmshearing.compute import training_flops
from tests.conftest import REPOSITORY


def test_the_page_has_the_tables_as_they_are_computed() -> None:
    page = (REPOSITORY / "docs" / "scale.md").read_text(encoding="utf-8")
    assert [table.splitlines()[2] for table in budget.tables() if table not in page] == []


def test_hours_are_operations_over_what_the_gpus_sustain() -> None:
    plan = budget.Plan(1e12, 10, 1e6)
    hours = 1e12 * training_flops(budget.MODEL, seq_len=4096, checkpointing=False) / (989e12 * 0.4 * 3600)
    assert float(budget.budget(plan)["GPU-hours"].replace(",", "")) == pytest.approx(hours, rel=0.005)
    assert budget.MODEL.num_parameters() == 2_701_560_320


def test_a_bound_on_amplification_is_of_a_nodes_share(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(nodes: int) -> float:
        return float(budget.budget(budget.Plan(1e12, nodes, 1e6))["fetched by each node, TB"])

    assert fetched(1) == 2.0
    assert fetched(16) == pytest.approx(2 * 1.2 / 16, rel=0.05)
    unbounded = dataclasses.replace(budget.COSTS["amplification"], value=math.inf)
    monkeypatch.setitem(budget.COSTS, "amplification", unbounded)
    assert fetched(1) == fetched(64) == 2.0  # all of it


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.0174, "0.017"), (0.99, "0.99"), (42.4, "42"), (672.3, "672"), (14_932, "14,900")],
)
def test_numbers_have_two_or_three_digits(value: float, text: str) -> None:
    assert budget._number(value) == text
