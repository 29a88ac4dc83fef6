"""What the tests of conversion share: one checkpoint, and running the command."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmshearing.convert.__main__ import main
from tests.convert.checkpoints import changed, pruned


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruning checkpoint, which no test may change."""
    return pruned(tmp_path_factory.mktemp("pruned"))


@pytest.fixture(scope="session")
def dense_checkpoint(checkpoint: Path) -> Path:
    """A dense checkpoint, which no test may change."""
    return changed(checkpoint, checkpoint.parent / "dense.pt", lambda content: content["state"].update(algorithms=[]))


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says, which must be one line of error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Convert by the command line, which must fail in the right way; returns its message."""

    def run(checkpoint: str | Path, *options: str, out: str | Path | None = None, command: str = "shear") -> str:
        before = sorted(tmp_path.rglob("*"))
        monkeypatch.setattr(
            sys, "argv", ["convert", command, str(checkpoint), str(tmp_path / "out" if out is None else out), *options]
        )
        error = refusal(capsys)
        assert sorted(tmp_path.rglob("*")) == before
        return error

    return run
