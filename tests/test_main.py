"""``llmshearing COMMAND``: that every command is there, by the words that its module takes."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from llmshearing.__main__ import COMMANDS, words
from tests.conftest import REPOSITORY


def call(*arguments: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmshearing", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def test_every_module_of_a_command_exists_and_every_command_is_a_module() -> None:
    assert all(find_spec(module) is not None for module, _, _ in COMMANDS.values())
    package = REPOSITORY / "llmshearing"
    named = {module.removeprefix("llmshearing.").replace(".", "/") for module, _, _ in COMMANDS.values()}
    files = [*package.glob("*.py"), *(folder / "__main__.py" for folder in package.iterdir() if folder.is_dir())]
    modules = {
        str((path.parent if path.name == "__main__.py" else path.with_suffix("")).relative_to(package))
        for path in files
        if path.is_file() and 'if __name__ == "__main__":' in path.read_text()
    }
    # train is behind composer's launcher; architecture writes a table of the documentation
    assert modules - {".", "train", "architecture"} <= named


def test_words_go_where_the_modules_want_them() -> None:
    assert words("shear", ["a.pt", "out"]) == ("llmshearing.convert", ["shear", "a.pt", "out"])
    launched = ["-n", "8", "-m", "llmshearing.train", "r.yaml", "seed=1"]
    assert words("train", ["-n", "8", "r.yaml", "seed=1"]) == ("composer.cli.launcher", launched)
    assert words("train", ["r.yaml"]) == ("composer.cli.launcher", ["-m", "llmshearing.train", "r.yaml"])


@pytest.mark.parametrize("name", ["choose-shape", "new-recipe", "report", "rotate", "prepare"])
def test_help_is_the_commands_own(name: str) -> None:
    done = call(name, "--help")
    assert done.returncode == 0
    assert "usage:" in done.stdout
    assert "COMMAND ..." not in done.stdout


def test_without_a_command_or_with_an_unknown_one_all_are_named() -> None:
    done = call()
    assert done.returncode == 2
    assert all(f"  {name} " in done.stdout for name in COMMANDS)
    assert call("--help").stdout == done.stdout
    done = call("shere")
    assert done.returncode == 2
    assert "Unknown command 'shere'. Did you mean 'shear'?" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_errors_and_exit_codes_are_the_commands_own(tmp_path: Path) -> None:
    done = call("shear", "nowhere", str(tmp_path / "out"))
    assert (done.returncode, done.stderr) == (2, "error: There is no checkpoint 'nowhere'.\n")
    done = call("train", "-n", "1", "yamls/debug/prune.yaml", "dry_run=true", "seed=-1")
    assert done.returncode != 0
    assert "seed is -1" in done.stdout + done.stderr
    done = call("train", "yamls/debug/prune.yaml", "dry_run=true")
    assert done.returncode == 0
    assert "Dry run of 'debug-prune'" in done.stdout
