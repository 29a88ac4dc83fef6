"""Pieces of work that are killed and run again, each small, real and with a result that can be compared bit by bit."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.conftest import REPOSITORY
from tests.dry_runs import make_debug_data

PYTHON = sys.executable
RECIPE = str(REPOSITORY / "yamls" / "debug" / "prune.yaml")
SCENARIOS = ("training", "resume", "conversion", "preparation")
CLOCKS = ("_wct", ".time")  # ends of the names of what a clock says
HALF = 6  # batches after which the run that is resumed stands
SHORT = ["max_duration=12ba", "save_interval=2ba", "eval_interval=4ba", "train_loader.dataset.update_interval=4"]


class Scenario(ABC):
    """One command, run in a folder of its own that :func:`prepare` has filled."""

    name: str
    command: list[str]

    def __init__(self, inputs: Path) -> None:
        self.inputs = inputs

    def prepare(self, folder: Path) -> None:
        """Put what the command needs into ``folder``."""
        (folder / "runs").mkdir(parents=True)
        (folder / "runs" / "debug").symlink_to(self.inputs / "runs" / "debug")

    @abstractmethod
    def result(self, folder: Path) -> dict[str, Any]:
        """What the command has made, by name, without anything that depends on the clock."""


class Training(Scenario):
    """Pruning with an adaptive mix, a checkpoint every two batches, one process that reads data."""

    name = "training"
    run = "run"

    def __init__(self, inputs: Path) -> None:
        super().__init__(inputs)
        overrides = ["autoresume=true", "save_overwrite=false", f"variables.run={self.run}", *SHORT]
        self.command = [PYTHON, "-m", "llmshearing.train", RECIPE, *overrides]

    def result(self, folder: Path) -> dict[str, Any]:
        checkpoints = folder / self.run / "checkpoints"
        state = torch.load(checkpoints / "latest-rank0.pt", weights_only=False)["state"]
        found = {f"metrics {line['batch']}": line for line in metrics(folder / self.run / "metrics.jsonl")}
        found["checkpoints"] = sorted(path.name for path in checkpoints.iterdir())
        for part in ("model", "optimizers", "schedulers", "algorithms", "dataset_state", "callbacks"):
            found |= {f"{part}{name}": value for name, value in leaves(state[part]) if not name.endswith(CLOCKS)}
        return found


class Resume(Training):
    """The same from a checkpoint in the middle, with another number of processes that read data."""

    name = "resume"

    def __init__(self, inputs: Path, whole: Path) -> None:
        super().__init__(inputs)
        self.whole = whole
        self.command = [*self.command, "train_loader.num_workers=0"]

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        shutil.copytree(self.whole, folder / self.run, symlinks=True)


class Conversion(Scenario):
    """Shearing a pruning run's checkpoint."""

    name = "conversion"
    command: list[str]

    def __init__(self, inputs: Path, checkpoint: Path) -> None:
        super().__init__(inputs)
        self.command = [PYTHON, "-m", "llmshearing.convert", "shear", str(checkpoint), "out", "--overwrite"]

    def result(self, folder: Path) -> dict[str, Any]:
        return files(folder)


class Preparation(Scenario):
    """Tokenizing and packing two domains with two workers."""

    name = "preparation"

    def __init__(self, inputs: Path) -> None:
        super().__init__(inputs)
        script = str(REPOSITORY / "data_prep" / "prepare.py")
        arguments = [
            "--tokenizer",
            "runs/debug/tokenizer",
            "--seq-len",
            "64",
            "--eval-sequences",
            "16",
            "--workers",
            "2",
        ]
        self.command = [PYTHON, script, "runs/debug/corpus", "out", *arguments]

    def result(self, folder: Path) -> dict[str, Any]:
        return files(folder)


def make_scenarios(folder: Path, run: Callable[[Scenario, Path], object]) -> dict[str, Scenario]:
    """All scenarios, by name.

    Args:
        folder: for their inputs: text, tokenizer, prepared data, a checkpoint and a run that stands half-way.
        run: runs a scenario's command in a folder.
    """
    make_debug_data(folder)
    training = Training(folder)
    training.command.append("save_num_checkpoints_to_keep=-1")
    training.prepare(folder / "trained")
    run(training, folder / "trained")
    trained, half = folder / "trained" / training.run, folder / "half"
    shutil.copytree(trained, half, symlinks=True)
    for path in (half / "checkpoints").iterdir():
        if (found := re.search(r"ba(\d+)", path.name)) is not None and int(found[1]) > HALF:
            path.unlink()
    link(half / "checkpoints" / "latest-rank0.pt", f"ep0-ba{HALF}-rank0.pt")
    scenarios = (
        Training(folder),
        Resume(folder, half),
        Conversion(folder, trained / "checkpoints" / "latest-rank0.pt"),
        Preparation(folder),
    )
    return {scenario.name: scenario for scenario in scenarios}


def link(path: Path, target: str) -> None:
    """Let ``path`` be a link to ``target``, whatever it was."""
    path.unlink()
    path.symlink_to(target)


def metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a run, merged by batch, without times."""
    merged: dict[int, dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        values = json.loads(line)
        merged.setdefault(values["batch"], {}).update(values)
    return [{key: value for key, value in line.items() if "time" not in key.split("/")[0]} for line in merged.values()]


def leaves(value: Any, name: str = "") -> list[tuple[str, Any]]:
    """Tensors and plain values of nested containers, by path; tensors as bytes, of which NaN equals NaN."""
    if isinstance(value, dict):
        return [leaf for key, part in value.items() for leaf in leaves(part, f"{name}.{key}")]
    if isinstance(value, (list, tuple)):
        return [leaf for index, part in enumerate(value) for leaf in leaves(part, f"{name}.{index}")]
    if isinstance(value, torch.Tensor):
        value = (value.dtype, tuple(value.shape), value.contiguous().numpy().tobytes())
    return [(name, value)]


def files(folder: Path) -> dict[str, str]:
    """Every file that a command left beside its inputs, hidden ones too, with the hash of its content."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "runs" not in path.relative_to(folder).parts
    }
