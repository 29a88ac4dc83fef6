"""A recipe with ``autoresume``: killed and started again by the same command, it ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dist_cp

from llmshearing.convert.commands import open_checkpoint
from tests.conftest import REPOSITORY
from tests.dry_runs import make_debug_data
from tests.forkserver import ForkServer


def command(run: str) -> list[str]:
    """The debug recipe with a checkpoint half-way: seconds pass between that and the next."""
    overrides = ["autoresume=true", "save_overwrite=false", f"variables.run=runs/debug/{run}"]
    overrides += ["max_duration=60ba", "save_interval=30ba"]
    return [sys.executable, "-m", "llmshearing.train", str(REPOSITORY / "yamls" / "debug" / "prune.yaml"), *overrides]


def result(folder: Path) -> tuple[dict[str, torch.Tensor], Any, list[int]]:
    """Weights, masks and samples used at the end of a run."""
    state = torch.load(folder / "checkpoints" / "latest-rank0.pt", weights_only=False)["state"]
    algorithms, dataset = dict(state["algorithms"]), state["dataset_state"]["train"]
    return state["model"], algorithms["TargetedPruning"]["masks"]["log_alpha"], dataset["samples_used"]


@pytest.mark.slow
def test_a_sharded_run_changes_to_a_rule_that_looks_back_and_goes_on_by_it(forked: ForkServer, tmp_path: Path) -> None:
    make_debug_data(tmp_path)
    settings: dict[str, Any] = {"cwd": tmp_path, "env": {**os.environ, "OMP_NUM_THREADS": "1"}, "check": True}
    histories = []
    for batches, looks_back in ((10, "false"), (20, "true"), (30, "true")):
        changes = [f"max_duration={batches}ba", "algorithms.targeted_pruning.warmup=5ba"]
        changes += ["fsdp_config.state_dict_type=sharded"]
        changes += [f"callbacks.dynamic_batch_loading.predict_references={looks_back}"]
        forked.run([*command("sharded"), *changes], **settings)
        with open_checkpoint(tmp_path / "runs" / "debug" / "sharded" / "checkpoints" / f"ep0-ba{batches}") as found:
            history = found.load("callbacks", "DynamicBatchLoading", "history")
        histories.append(None if history is None else len(json.loads(history)["samples"]))
    assert histories == [None, 2, 4]


@pytest.mark.slow
def test_a_sharded_run_that_overwrites_a_longer_one_ends_with_a_link_to_its_own(
    forked: ForkServer, tmp_path: Path
) -> None:
    make_debug_data(tmp_path)
    checkpoints = tmp_path / "runs" / "debug" / "sharded" / "checkpoints"
    longer = {"state": {"model": {"model.weight": torch.ones(4, 2)}}}
    dist_cp.save(longer, storage_writer=dist_cp.FileSystemWriter(checkpoints / "ep0-ba90"), no_dist=True)
    changes = ["autoresume=false", "save_overwrite=true", "max_duration=6ba", "algorithms.targeted_pruning.warmup=5ba"]
    changes += ["fsdp_config.state_dict_type=sharded"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    forked.run([*command("sharded"), *changes], cwd=tmp_path, env=environment, check=True)
    assert os.readlink(checkpoints / "latest-rank0.pt") == "ep0-ba6"
    assert (checkpoints / "ep0-ba90" / ".metadata").exists()


@pytest.mark.slow
def test_a_killed_run_goes_on_by_the_same_command(forked: ForkServer, tmp_path: Path) -> None:
    make_debug_data(tmp_path)
    settings: dict[str, Any] = {"cwd": tmp_path, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    forked.run(command("whole"), check=True, **settings)

    folder = tmp_path / "runs" / "debug" / "killed"
    process = forked.start(command("killed"), **settings)
    latest = folder / "checkpoints" / "latest-rank0.pt"
    while "ba30" not in latest.resolve().name:  # linked when it is complete
        assert process.poll() is None, process.read()
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not list(folder.glob("checkpoints/*ba60*"))
    (folder / "checkpoints" / "ep0-ba60-rank0.pt").write_bytes(b"cut off")  # as a kill while saving leaves it
    forked.run(command("killed"), check=True, **settings)

    weights, masks, used = result(folder)
    expected_weights, expected_masks, expected_used = result(tmp_path / "runs" / "debug" / "whole")
    assert used == expected_used
    assert [name for name, tensor in expected_weights.items() if not torch.equal(weights[name], tensor)] == []
    assert [name for name, tensor in expected_masks.items() if not torch.equal(masks[name], tensor)] == []
    log_of_batches = [json.loads(line)["batch"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert log_of_batches == sorted(log_of_batches)
    assert set(log_of_batches) == set(range(61))
