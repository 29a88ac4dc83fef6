"""``make gpu-check``: how parts end, what is a failure, and on the CPU what can run there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu_check.__main__ import main
from benchmarks.gpu_check.part import FailedError, Setup
from benchmarks.gpu_check.runner import PARTS, run
from benchmarks.gpu_check.speed import Steps
from tests.conftest import REPOSITORY

ENDINGS = {name: ("tests.benchmarks.gpu_parts", name) for name in ("fine", "wrong", "absent", "raises", "killed")}
FOR_GPUS = {"flash_attention_2", "fsdp1", "auto_microbatches"}


def test_every_part_ends_in_its_own_way_and_the_others_go_on(tmp_path: Path) -> None:
    outcomes = list(run([*ENDINGS, "fine"], Setup("cpu", True, tmp_path), ENDINGS))
    assert [outcome.outcome for outcome in outcomes] == ["ok", "failed", "skipped", "failed", "failed", "ok"]
    figures = [outcome.figure for outcome in outcomes]
    assert figures[0] == "a difference of 0.5"
    assert outcomes[0].values == {"value": 0.5}
    assert figures[1] == "a difference of nan, which should be at most 1"
    assert figures[2] == "needs a GPU"
    assert figures[3].startswith("ValueError: two lines; see ")
    assert "exit code -9" in figures[4]
    assert "what it prints" in (tmp_path / "fine.log").read_text()
    assert "Traceback" in (tmp_path / "raises.log").read_text()
    assert all(outcome.seconds > 0 and outcome.name in outcome.line() for outcome in outcomes)


def test_when_time_is_over_a_part_is_ended_with_all_it_started_and_no_other_begins(tmp_path: Path) -> None:
    parts = {"hangs": ("tests.benchmarks.gpu_parts", "hangs"), **ENDINGS}
    outcomes = list(run(["hangs", "fine"], Setup("cpu", True, tmp_path), parts, seconds=10))
    assert [outcome.outcome for outcome in outcomes] == ["failed", "failed"]
    assert "not done" in outcomes[0].figure
    assert "not begun" in outcomes[1].figure
    assert _has_ended(int((tmp_path / "pid").read_text()))


def _has_ended(pid: int) -> bool:
    """Also if nobody has asked for its exit code yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def steps(**changes: Any) -> Steps:
    measured: dict[str, Any] = {
        "tokens": 1000,
        "flops": 1e9,
        "seconds": 0.1,
        "masked_seconds": 0.105,
        "memory": 9_000_000_000,
        "masked_memory": 9_500_000_000,
        "estimated_memory": 1e10,
    }
    return Steps(**{**measured, **changes})


def test_steps_are_told_with_speed_cost_of_masks_and_memory_beside_its_estimate() -> None:
    found = steps().judged()
    assert found.figure == "10,000 tokens/s, 10 TFLOP/s, masked step 1.05; 9 GB, masked 9.5, estimated 10"
    assert found.values["ratio"] == pytest.approx(1.05)
    assert "GB" not in steps(memory=None, masked_memory=None).judged().figure


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"masked_seconds": 0.12}, "a masked step should take at most 1.15"),
        ({"masked_memory": 11_500_000_000}, "1.15 of the estimate, not 0.5 to 1.1"),
        ({"estimated_memory": 2e10}, "0.47 of the estimate, not 0.5 to 1.1"),
    ],
)
def test_dear_masks_and_estimates_that_are_far_off_are_failures(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(FailedError, match=what):
        steps(**changes).judged()


def test_without_a_device_it_says_so_and_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    main(["--out", str(tmp_path / "check")])
    assert capsys.readouterr().out == "No CUDA device here: nothing was checked.\n"
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "work").touch()
    with pytest.raises(SystemExit) as ended:
        main(["--out", str(tmp_path), "--device", "cpu"])
    assert ended.value.code == 2
    assert "is not of an earlier check" in capsys.readouterr().err
    assert (tmp_path / "work").exists()


@pytest.mark.slow
def test_on_the_cpu_all_parts_that_need_no_gpu_are_well(tmp_path: Path) -> None:
    """``torch.compile`` takes a minute of a C++ compiler, and is left out."""
    names = [name for name in PARTS if name != "compile"]
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--out", str(tmp_path / "check"), "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    for _ in range(2):  # the second in the folder of the first
        done = subprocess.run(
            [*command, "--small", "--only", *names], cwd=REPOSITORY, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        result = json.loads((tmp_path / "check" / "result.json").read_text())
        assert {part["name"]: part["outcome"] for part in result["parts"]} == {
            name: "skipped" if name in FOR_GPUS else "ok" for name in names
        }
        lines = done.stdout.splitlines()
        assert [line.split()[1] for line in lines[1:-1]] == names
        assert lines[0] == f"On the CPU, torch {torch.__version__.split('+')[0]}:"
        names = ["logits_fp32"]


@pytest.mark.slow
def test_a_part_whose_data_another_should_have_left_fails(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--out", str(tmp_path / "check"), "--device", "cpu", "--small", "--only", "fsdp2"])
    assert ended.value.code == 1
    assert "failed  fsdp2             nothing to compare with: part 'plain' did not end well" in capfd.readouterr().out
