"""Run commands in order, once each: a second call skips what is finished, a killed call goes on where it stopped."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llmshearing.fileio import read_json, remove, write_json
from llmshearing.parentage import end_with_parent


@dataclass(frozen=True)
class Stage:
    """One step of a pipeline.

    Args:
        name: names the record and heads the output.
        title: what the step does, for a person.
        commands: argument lists, run in order from ``root``.
        outputs: what the commands write; removed before the stage runs anew.
        inputs: files whose content decides, besides the commands, whether the stage must run anew.
        remedy: what to do if a command fails, where that can be known.
    """

    name: str
    title: str
    commands: Sequence[Sequence[str]]
    outputs: Sequence[Path]
    inputs: Sequence[Path] = ()
    remedy: str = ""


def run_stages(stages: Sequence[Stage], records: Path, *, root: Path) -> dict[str, float]:
    """Run all stages that are not finished.

    A stage is finished if its record says so for the same commands, inputs and predecessors. A second caller waits
    until the first one has ended.

    Args:
        stages: in order; each may depend on all before it.
        records: folder for one record per stage.
        root: folder that the commands run in.

    Returns:
        Seconds that each stage took, over all calls.

    Raises:
        SystemExit: a command failed; with its exit code.
    """
    with _alone(records):
        return _run_all(stages, records, root)


@contextmanager
def _alone(records: Path) -> Iterator[None]:
    """Hold the records against other processes; waits for the one that has them."""
    records.mkdir(parents=True, exist_ok=True)
    with (records / ".lock").open("a") as file:  # a lock that the commands do not inherit
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print(f"Another process works on '{records}'; waiting for it to end.", flush=True)
            fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def _run_all(stages: Sequence[Stage], records: Path, root: Path) -> dict[str, float]:
    seconds = {}
    key = ""
    for number, stage in enumerate(stages, start=1):
        key = _key(stage, key)
        path = records / f"{stage.name}.json"
        record = read_json(path) if path.is_file() else {}
        if record.get("key") != key:
            for output in stage.outputs:
                remove(output)
            record = {"key": key, "finished": False, "wall_s": 0.0}
        heading = f"[{number}/{len(stages)}] {stage.title}"
        if record["finished"]:
            print(f"{heading}: done before ({record['wall_s']:.0f} s)", flush=True)
        else:
            print(f"\n{heading}", flush=True)
            write_json(path, record)
            _run(stage, record, path, root)
        seconds[stage.name] = record["wall_s"]
    return seconds


def _run(stage: Stage, record: dict, path: Path, root: Path) -> None:
    begin, before = time.monotonic(), record["wall_s"]
    environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1"}  # nothing compiles; its pool takes 0.3 GB
    for command in stage.commands:
        print(f"$ {' '.join(command)}", flush=True)
        # A killed demo leaves no training behind, which would hold its folder against the next call.
        follow = functools.partial(end_with_parent, os.getpid())
        code = subprocess.run(command, cwd=root, env=environment, preexec_fn=follow).returncode
        record["wall_s"] = before + time.monotonic() - begin
        write_json(path, record)
        if code != 0:
            message = f"The stage '{stage.name}' failed with exit code {code}; the cause stands above."
            print(f"{message} {stage.remedy}".rstrip(), flush=True)
            raise SystemExit(code)
    record["finished"] = True
    write_json(path, record)


def _key(stage: Stage, predecessor: str) -> str:
    digest = hashlib.sha256(predecessor.encode())
    digest.update(repr([list(command) for command in stage.commands]).encode())
    for file in stage.inputs:
        digest.update(file.read_bytes())
    return digest.hexdigest()
