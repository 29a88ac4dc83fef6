"""States of earlier versions go on and are sheared as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llmshearing import TargetedPruning
from llmshearing.convert.commands import shear
from tests.training import TARGET, logged, make_trainer

WAYS: dict[str, dict[str, Any]] = {
    "learned": {"warmup": "3ba"},
    "searched": {"search": "5ba"},
    "important": {"selection": "importance", "search": "5ba"},
    "random": {"selection": "random"},
}


def make_old(path: Path, out: Path) -> None:
    """The checkpoint as version 0.1 wrote it: ``log_alpha`` for every selection, infinite for chosen units."""
    checkpoint = torch.load(path, weights_only=False)
    (state,) = (state for name, state in checkpoint["state"]["algorithms"] if name == "TargetedPruning")
    masks = state["masks"]
    decided, chosen, scores = masks.pop("decided"), masks.pop("chosen"), masks.pop("scores", None)
    if scores is not None:
        state["importance"] = scores
    log_alpha = masks.setdefault("log_alpha", {name: torch.full(mask.shape, 3.0) for name, mask in chosen.items()})
    if decided:
        log_alpha |= {name: torch.where(mask, torch.inf, -torch.inf) for name, mask in chosen.items()}
    torch.save(checkpoint, out)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stop", [3, 8])
def test_a_run_of_an_earlier_version_goes_on_to_the_same_numbers(tmp_path: Path, way: str, stop: int) -> None:
    straight = make_trainer([TargetedPruning(TARGET, **WAYS[way])], folder=tmp_path / "run", save_interval=f"{stop}ba")
    straight.fit()
    make_old(tmp_path / f"run/ep0-ba{stop}-rank0.pt", tmp_path / "old.pt")
    resumed = make_trainer([TargetedPruning(TARGET, **WAYS[way])], load_path=str(tmp_path / "old.pt"))
    resumed.fit()
    assert logged(resumed, "loss/train/total") == logged(straight, "loss/train/total")[stop:]


@pytest.mark.parametrize("way", WAYS)
def test_a_checkpoint_of_an_earlier_version_is_sheared_alike(tmp_path: Path, way: str) -> None:
    make_trainer([TargetedPruning(TARGET, **WAYS[way])], folder=tmp_path / "run").fit()
    newest = tmp_path / "run/latest-rank0.pt"
    make_old(newest, tmp_path / "old.pt")
    shear(newest, tmp_path / "new")
    shear(tmp_path / "old.pt", tmp_path / "old")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "new" / name).read_bytes() == (tmp_path / "old" / name).read_bytes()
