"""All that can be typed wrong ends the command within seconds, with one line that names it, and leaves nothing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.badinput.cases import COMMANDS, table
from tests.badinput.recipe_cases import ABSENT, DRY_RUN, FILES, RECIPE
from tests.conftest import REPOSITORY
from tests.forkserver import Forked, ForkServer

pytestmark = pytest.mark.badinput

PROGRAMS = {
    "train": ["-m", "llmshearing.train"],
    "shear": ["-m", "llmshearing.convert", "shear"],
    "export": ["-m", "llmshearing.convert", "export"],
    "rotate": ["-m", "llmshearing.convert", "rotate"],
    "reference": ["-m", "llmshearing.reference_loss"],
    "score": ["-m", "llmshearing.score"],
    "quality": ["-m", "llmshearing.text_quality"],
    "downstream": ["-m", "llmshearing.downstream"],
    "tune": ["-m", "llmshearing.tune"],
    "answers": ["-m", "llmshearing.answers"],
    "speed": ["-m", "llmshearing.inference_speed"],
    "prepare": [str(REPOSITORY / "data_prep" / "prepare.py")],
    "tokenizer": [str(REPOSITORY / "data_prep" / "train_tokenizer.py")],
    "report": ["-m", "llmshearing.report"],
}

GOOD = "--tokenizer runs/debug/tokenizer --seq-len 128 --eval-sequences 16"


def start(forked: ForkServer, place: Path, program: str, *arguments: str) -> Forked:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return forked.start(["python", *PROGRAMS[program], *arguments], cwd=place, env=environment)


def message(process: Forked, names: list[str]) -> str:
    """The one line of a command that must have refused what it was given."""
    try:
        code = process.wait(120)
    except subprocess.TimeoutExpired:
        process.kill_group()
        raise
    stdout, stderr = process.read()
    assert "Traceback" not in stdout + stderr, stderr
    assert code == 2, f"exit code {code}\n{stdout}\n{stderr}"
    last = stderr.strip().splitlines()[-1] if stderr.strip() else stdout
    if not stderr.startswith("usage: ") and program_says(stderr):
        errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, stderr
        last = stderr[stderr.index("error: ") :]
    for name in names:
        assert name in last, f"{name!r} is not named: {last}"
    return last


def program_says(stderr: str) -> bool:
    return any(line.startswith("error: ") for line in stderr.splitlines())


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(("typed", "names"), table(RECIPE))
def test_training_and_its_dry_run_refuse_alike(forked: ForkServer, place: Path, typed: str, names: list[str]) -> None:
    before = listing(place)
    overrides = typed.split(" | ")
    run = start(forked, place, "train", "debug.yaml", *overrides)
    plan = start(forked, place, "train", "debug.yaml", *overrides, "dry_run=true")
    try:
        assert message(plan, names) == message(run, names)
    finally:
        run.kill_group()
        run.wait()
    assert listing(place) == before


@pytest.mark.parametrize(("typed", "names"), table(ABSENT))
def test_what_is_not_there(forked: ForkServer, place: Path, typed: str, names: list[str]) -> None:
    before = listing(place)
    run = start(forked, place, "train", "debug.yaml", typed)
    plan = start(forked, place, "train", "debug.yaml", typed, "dry_run=true")
    try:
        assert plan.wait(120) == 0, plan.read()[1]
        absent = [line for line in plan.read()[0].splitlines() if line.startswith("not here ")]
        assert any(name in line for name in names for line in absent), absent
        message(run, names)
    finally:
        run.kill_group()
        run.wait()
    # The run's folder is taken before checkpoints are looked for, and the teacher is read last.
    claimed = {"runs/debug/prune", "runs/debug/prune/.lock", "runs/debug/prune/checkpoints"}
    assert set(listing(place)) - claimed == set(before)


@pytest.mark.parametrize(("typed", "names"), table(DRY_RUN))
def test_a_dry_run(forked: ForkServer, place: Path, typed: str, names: list[str]) -> None:
    before = listing(place)
    message(start(forked, place, "train", "debug.yaml", *typed.split(" | ")), names)
    assert listing(place) == before


@pytest.mark.parametrize(("content", "name"), FILES, ids=[repr(content)[2:20] for content, _ in FILES])
def test_recipe_files(forked: ForkServer, place: Path, content: bytes, name: str) -> None:
    (place / "bad.yaml").write_bytes(content)
    before = listing(place)
    message(start(forked, place, "train", "bad.yaml", "dry_run=true"), ["bad.yaml", name])
    assert listing(place) == before


@pytest.mark.parametrize(("typed", "names"), table(COMMANDS))
def test_commands(forked: ForkServer, place: Path, typed: str, names: list[str]) -> None:
    before = listing(place)
    program, *arguments = typed.replace("GOOD", GOOD).split(" ")
    message(start(forked, place, program, *arguments), names)
    # What is tokenized stays for the next try.
    assert [path for path in listing(place) if path != "out" and not path.startswith("out/.partial")] == before


def test_there_are_enough() -> None:
    cases = [typed for text in (RECIPE, ABSENT, DRY_RUN, COMMANDS) for typed, _ in table(text)]
    assert len(set(cases)) == len(cases)
    assert len(cases) + len(FILES) >= 220
