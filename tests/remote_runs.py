"""The debug recipe on an object store, for tests."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from llmshearing import storage
from tests.conftest import REPOSITORY
from tests.forkserver import ForkServer

SHORT = (
    "max_duration=8ba", "save_interval=2ba", "eval_interval=2ba", "train_loader.dataset.update_interval=2",
    "algorithms.targeted_pruning.warmup=4ba", "train_loader.num_workers=0", "save_num_checkpoints_to_keep=2",
)  # fmt: skip
RUN = "s3://bucket/runs/mine#2"
TO_STORE = (f"variables.run={RUN}", "autoresume=true", "save_overwrite=false")


def upload_folder(folder: Path, address: str) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            storage.upload(path, storage.join(address, path.relative_to(folder).as_posix()))


def training(*overrides: str) -> list[str]:
    recipe = str(REPOSITORY / "yamls" / "debug" / "prune.yaml")
    return [sys.executable, "-m", "llmshearing.train", recipe, *SHORT, *overrides]


def machine(folder: Path, name: str) -> dict[str, Any]:
    """A working directory and environment as those of another machine: nothing that one leaves is there for another."""
    temporary = folder / f"{name}-tmp"
    temporary.mkdir(exist_ok=True)
    return {"cwd": folder, "env": {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}}


def train(forked: ForkServer, settings: dict[str, Any], *overrides: str) -> str:
    """Run to the end; returns what it says on stderr."""
    done = forked.run(training(*overrides), timeout=300, **settings)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def refused(forked: ForkServer, settings: dict[str, Any], *overrides: str) -> str:
    """The one line in which a command that must fail says why, with the entries of its list."""
    done = forked.run(training(*overrides), timeout=300, **settings)
    assert done.returncode == 2, done.stderr[-3000:]
    assert done.stderr.count("error: ") == 1, done.stderr[-3000:]
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    said = done.stderr[done.stderr.index("error: ") :].splitlines()
    assert all(line.startswith("  - ") for line in said[1:]), said
    return "\n".join(said)


def losses(metrics: bytes | str) -> dict[int, dict[str, Any]]:
    """What a metrics log says by batch, but for times and speeds."""
    found: dict[int, dict[str, Any]] = {}
    for line in metrics.splitlines():
        record = json.loads(line)
        values = {key: value for key, value in record.items() if key.startswith(("loss", "metrics/", "data/"))}
        found.setdefault(record["batch"], {}).update(values)
    return found
