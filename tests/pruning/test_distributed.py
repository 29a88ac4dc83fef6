"""Masks under DDP and FSDP2 in real processes: the same on every rank, and the same for any number of ranks."""

from __future__ import annotations

import json
import os
from functools import partial
from operator import add
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import REPOSITORY
from tests.forkserver import ForkServer

pytestmark = pytest.mark.dist
LAYOUTS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp2-full": {"fsdp": {"state_dict_type": "full"}},
    "fsdp2-sharded": {"fsdp": {"state_dict_type": "sharded"}},
    "fsdp2-checkpointed": {"fsdp": {"state_dict_type": "full", "activation_checkpointing": True}},
}


def run(forked: ForkServer, out: Path, num_ranks: int, *, fails: bool = False, **options: Any) -> list[dict[str, Any]]:
    """Train on ``num_ranks`` processes; what each rank recorded."""
    out.mkdir(parents=True, exist_ok=True)
    command = ["composer", "-n", str(num_ranks), "-m", "tests.pruning.distributed_run", str(out), json.dumps(options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = forked.run(command, cwd=REPOSITORY, env=environment, timeout=600)
    assert (done.returncode != 0) == fails, done.stdout[-4000:] + done.stderr[-4000:]
    return [torch.load(out / f"rank{rank}.pt", weights_only=True) for rank in range(num_ranks)]


def assert_same(first: list[dict[str, Any]], second: list[dict[str, Any]], **tolerance: float) -> None:
    assert len(first) == len(second)
    for batch, (a, b) in enumerate(zip(first, second, strict=True)):
        for kind in ("log_alpha", "lambda", "phi"):
            for name in a[kind]:
                prefix = f"batch {batch}, {kind} {name}: "
                torch.testing.assert_close(a[kind][name], b[kind][name], **tolerance, msg=partial(add, prefix))


@pytest.fixture(scope="module")
def one_rank(forked: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(forked, tmp_path_factory.mktemp("one"), 1)[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_masks_are_identical_on_both_ranks_and_follow_the_single_rank(
    forked: ForkServer, tmp_path: Path, one_rank: dict[str, Any], layout: str
) -> None:
    ranks = run(forked, tmp_path, 2, **LAYOUTS[layout])
    assert ranks[0]["sharded"] == (layout != "ddp")
    assert_same(ranks[0]["rows"], ranks[1]["rows"], rtol=0, atol=0)
    assert_same(ranks[0]["rows"][:6], one_rank["rows"][:6], rtol=1e-3, atol=1e-3)
    assert ranks[0]["losses"] == pytest.approx(one_rank["losses"], rel=5e-3)


def test_four_ranks_follow_the_single_rank(forked: ForkServer, tmp_path: Path, one_rank: dict[str, Any]) -> None:
    ranks = run(forked, tmp_path, 4)
    for other in ranks[1:]:
        assert_same(ranks[0]["rows"], other["rows"], rtol=0, atol=0)
    assert_same(ranks[0]["rows"][:6], one_rank["rows"][:6], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("layout", ["ddp", "fsdp2-full", "fsdp2-sharded"])
def test_killed_run_resumes_to_the_same_bits(forked: ForkServer, tmp_path: Path, layout: str) -> None:
    straight = run(forked, tmp_path / "straight", 2, **LAYOUTS[layout])
    run(forked, tmp_path / "killed", 2, fails=True, resumes=True, kill_at=4, **LAYOUTS[layout])
    resumed = run(forked, tmp_path / "killed", 2, resumes=True, **LAYOUTS[layout])
    assert resumed[0]["start"] == 4
    assert_same(resumed[0]["rows"], straight[0]["rows"][4:], rtol=0, atol=0)
    assert resumed[0]["losses"] == straight[0]["losses"][4:]


def test_run_of_two_ranks_resumes_on_one(forked: ForkServer, tmp_path: Path, one_rank: dict[str, Any]) -> None:
    run(forked, tmp_path, 2, fails=True, resumes=True, kill_at=4)
    resumed = run(forked, tmp_path, 1, resumes=True)[0]
    assert resumed["start"] == 4
    assert resumed["losses"] == pytest.approx(one_rank["losses"][4:], rel=5e-3)
