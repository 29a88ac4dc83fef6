"""Dry runs of the shipped recipes, for tests, and what programs cost."""

from __future__ import annotations

import resource
from typing import Any

from llmshearing.dry_run.parts import Findings
from llmshearing.dry_run.report import Devices, describe
from llmshearing.recipe import load_recipe
from tests.conftest import REPOSITORY

DEVICES = Devices(num_devices=8)


def recipe_of(stage: str, name: str, *overrides: str) -> dict[str, Any]:
    return load_recipe(REPOSITORY / "yamls" / stage / f"{name}.yaml", overrides)


def run(recipe: dict[str, Any], devices: Devices = DEVICES) -> tuple[str, Findings]:
    findings = Findings()
    return "\n".join(describe(recipe, devices, findings)), findings


def children_seconds() -> float:
    """Of the processor, by all programs that this one has waited for: the clock also counts what others do."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
