"""Runs and dry runs of the shipped recipes, for tests, and what programs cost."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

from llmshearing.data_prep import debug_corpus, prepare, train_tokenizer
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


def make_debug_data(folder: Path) -> Path:
    """What ``make debug`` makes before it trains, in ``folder``; returns it."""
    corpus, tokenizer, data = (str(folder / "runs" / "debug" / name) for name in ("corpus", "tokenizer", "data"))
    debug_corpus.main([corpus])
    train_tokenizer.main([corpus, tokenizer, "--vocab-size", "1024"])
    settings = ["--tokenizer", tokenizer, "--seq-len", "128", "--eval-sequences", "16", "--workers", "1"]
    prepare.main([corpus, data, *settings])
    return folder
