"""Real processes that are stopped while they convert, and how much memory one takes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks import convert as benchmark
from tests.conftest import REPOSITORY
from tests.convert.checkpoints import changed
from tests.forkserver import Forked, ForkServer

# Rows one by one: slow enough to be stopped on the way.
SLOW = "from llmshearing.convert import __main__, commands; commands._BYTES_IN_FLIGHT = 1; __main__.main()"
# A signal that comes when the old folder has to make way for the new one.
LATE = """
import os, signal
from llmshearing.convert import __main__
def replace(old, new, replace=os.replace):
    if os.path.isdir(old):
        os.kill(os.getpid(), signal.SIGTERM)
    replace(old, new)
os.replace = replace
__main__.main()
"""
MEASURED = """
from pathlib import Path
from llmshearing.convert import __main__
__main__.main()
print(*(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
"""


def build(path: Path, hidden: int, heads: int, target: int) -> Path:
    """A pruning checkpoint with 32,000 tokens, so with that many rows in its largest tensors."""
    benchmark.SCALES["test"] = {
        "source": (hidden, 2, heads, 64),
        "target": (target, 2, heads // 2, 32),
        "dtype": "float32",
    }
    try:
        benchmark.build(path, "test")
    finally:
        del benchmark.SCALES["test"]
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("checkpoint") / "pruned.pt", 16, 2, 8)


@contextmanager
def shearing(
    forked: ForkServer, checkpoint: Path, out: Path, *options: str, command: str = "shear"
) -> Iterator[Forked]:
    """A process that is in the midst of writing."""
    process = forked.start([sys.executable, "-c", SLOW, command, checkpoint, out, *options], cwd=REPOSITORY)
    try:
        end = time.monotonic() + 120
        while not list(out.parent.glob(f".{out.name}.*/*.safetensors")):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
        yield process
    finally:
        process.kill()


def make_model_folder(folder: Path) -> list[str]:
    """What ``--overwrite`` may replace; returns the names of its files."""
    folder.mkdir()
    files = ["config.json", "model.safetensors", "old"]
    for name in files:
        (folder / name).write_text("precious")
    return files


def finish(forked: ForkServer, checkpoint: Path, out: Path) -> str:
    """An ordinary conversion; what it said."""
    command = [sys.executable, "-m", "llmshearing.convert", "shear", checkpoint, out]
    return forked.run(command, cwd=REPOSITORY, timeout=120, check=True).stderr


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130), (signal.SIGHUP, -signal.SIGHUP)]
)
def test_a_signal_ends_it_and_leaves_nothing(
    tmp_path: Path, checkpoint: Path, forked: ForkServer, number: int, code: int
) -> None:
    files = make_model_folder(tmp_path / "out")
    with shearing(forked, checkpoint, tmp_path / "out", "--overwrite") as process:
        process.send_signal(number)
        assert process.wait(timeout=60) == code
    assert process.read()[1] == f"Stopped by {signal.Signals(number).name}. Nothing is left behind.\n"
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(["out", *files])


def test_a_signal_that_comes_too_late_finds_the_new_folder_in_place(
    tmp_path: Path, checkpoint: Path, forked: ForkServer
) -> None:
    make_model_folder(tmp_path / "out")
    command = [sys.executable, "-c", LATE, "shear", checkpoint, tmp_path / "out", "--overwrite"]
    done = forked.run(command, cwd=REPOSITORY, timeout=120)
    assert done.returncode == -signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"model.safetensors", "shearing.json"}
    assert not (tmp_path / "out" / "old").exists()


def test_export_ends_likewise(tmp_path: Path, checkpoint: Path, forked: ForkServer) -> None:
    dense = changed(
        checkpoint, checkpoint.with_name("dense.pt"), lambda content: content["state"].update(algorithms=[])
    )
    with shearing(forked, dense, tmp_path / "out", command="export") as process:
        process.terminate()
        assert process.wait(timeout=60) == -signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_one_left_goes_with_the_next_run(tmp_path: Path, checkpoint: Path, forked: ForkServer) -> None:
    with shearing(forked, checkpoint, tmp_path / "out") as process:
        process.kill()
        process.wait()
    (left,) = tmp_path.iterdir()
    (tmp_path / ".out.settings").mkdir()  # named likewise, but no leftover
    (tmp_path / ".out.settings" / "mine").touch()
    assert f"Removed '{left}', left by a conversion that was killed." in finish(forked, checkpoint, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".out.settings"}
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_one_that_still_runs_is_left_alone(tmp_path: Path, checkpoint: Path, forked: ForkServer) -> None:
    with shearing(forked, checkpoint, tmp_path / "out") as process:
        process.send_signal(signal.SIGSTOP)
        (running,) = tmp_path.iterdir()
        assert f"'{running}' is of a conversion that still runs" in finish(forked, checkpoint, tmp_path / "out")
        assert list(running.glob("*.safetensors"))


def test_memory_does_not_grow_with_the_model(tmp_path: Path, checkpoint: Path) -> None:
    def peak(path: Path, out: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, "shear", str(path), str(tmp_path / out)],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        return int(done.stdout) * 1024

    large = build(tmp_path / "large.pt", 1024, 8, 512)
    assert large.stat().st_size > 250e6  # two tensors of 131 MB and little else
    assert peak(large, "large") - peak(checkpoint, "small") < 60e6
    assert (tmp_path / "large" / "model.safetensors").stat().st_size > 130e6
