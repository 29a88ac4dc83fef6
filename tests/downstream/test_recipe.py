"""The callback in a recipe, from the recipe's text to the report."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llmshearing.report.__main__ import main as report
from tests.conftest import REPOSITORY
from tests.dry_runs import make_debug_data
from tests.forkserver import ForkServer

pytest.importorskip("lm_eval", reason="no lm-eval: pip install 'llmshearing[eval]'")

CALLBACK = "callbacks.downstream_evaluation={suite: runs/debug/data, interval: 2ba, limit: 6}"


def test_a_recipe_evaluates_as_it_prunes_and_a_folder_that_is_not_there_yet_is_said(
    forked: ForkServer, tmp_path: Path
) -> None:
    settings = {"cwd": tmp_path, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    command = ["python", "-m", "llmshearing.train", str(REPOSITORY / "yamls/debug/prune.yaml"), CALLBACK]
    command += ["max_duration=5ba", "algorithms.targeted_pruning.warmup=2ba", "scheduler.t_warmup=1ba"]
    command += ["save_interval=5ba"]
    planned = forked.run([*command, "dry_run=true"], **settings)
    assert "suite 'runs/debug/data' of downstream tasks: it is not checked" in planned.stdout
    make_debug_data(tmp_path)
    done = forked.run(command, **settings)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "runs/debug/prune"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {record["batch"]: record for record in records if "downstream/average" in record}
    assert sorted(found) == [2, 4, 5]
    for record in found.values():
        shares = [
            record[f"downstream/{kind}_{domain}/acc"]
            for kind in ("choices", "completion")
            for domain in ("code", "manual")
        ]
        assert record["downstream/average"] == pytest.approx(sum(shares) / 4)
    report([str(run)])
    assert "choices_manual: acc" in (run / "report.html").read_text()
