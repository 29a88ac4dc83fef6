from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.dry_runs import make_debug_data
from tests.forkserver import ForkServer


def test_metrics_and_the_recipe_reach_tensorboard(forked: ForkServer, tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    make_debug_data(tmp_path)
    recipe = str(REPOSITORY / "yamls" / "debug" / "prune.yaml")
    overrides = ["max_duration=5ba", "algorithms.targeted_pruning.warmup=2ba", "loggers.tensorboard.log_dir=logs"]
    done = forked.run(
        ["composer", "-n", "1", "-m", "llmshearing.train", recipe, *overrides], cwd=tmp_path, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr[-2000:]
    curves, settings = set(), ""
    for path in (tmp_path / "logs").rglob("*tfevents*"):
        events = event_accumulator.EventAccumulator(str(path)).Reload()
        curves |= set(events.Tags()["scalars"])
        settings += path.read_bytes().decode("utf-8", "ignore")
    assert {"loss/train/total", "metrics/code/LanguageCrossEntropy", "data/proportion/code"} <= curves
    assert "optimizer.lr" in settings
    assert "algorithms.targeted_pruning.target.hidden_size" in settings
