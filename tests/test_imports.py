"""What importing costs: the mathematics and the conversion must not load Composer."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

import llmshearing
from llmshearing.registry import resolve


@pytest.mark.parametrize(
    "modules",
    [
        "llmshearing.pruning, llmshearing.data.proportions, llmshearing.divergence",
        "llmshearing.convert.commands",
        "llmshearing.pruning.shear",
    ],
)
def test_composer_stays_out(modules: str) -> None:
    code = f"import {modules}, sys; assert 'composer' not in sys.modules; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", llmshearing.__all__)
def test_public_names_are_there(name: str) -> None:
    assert getattr(llmshearing, name).__name__ == name


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        llmshearing.Nothing  # noqa: B018


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("algorithms", "targeted_pruning"),
        ("algorithms", "source_distillation"),
        ("callbacks", "dynamic_batch_loading"),
        ("dataloaders", "dynamic_streaming"),
        ("models", "composer_llama"),
    ],
)
def test_llm_foundry_finds_our_parts_by_the_names_that_recipes_use(kind: str, name: str) -> None:
    (entry,) = entry_points(group=f"llmfoundry_{kind}", name=name)
    assert entry.load() is resolve({"dataloaders": "train_loader", "models": "model"}.get(kind, kind), name)
