"""Training saves, prunes and replaces checkpoints while one is converted: the result is of one checkpoint, or none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmshearing.convert import commands
from llmshearing.convert.commands import export
from llmshearing.errors import InputError
from tests.convert.checkpoints import Content, changed, sharded

FORMS = {"file": changed, "folder": lambda checkpoint, path, change: sharded(checkpoint, path, change)}


def double(content: Content) -> None:
    for tensor in content["state"]["model"].values():
        tensor.mul_(2)


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def turn(link: Path, to: Path) -> None:
    """Let a link point elsewhere in one step, as Composer does."""
    link.with_name("turned").symlink_to(to)
    os.replace(link.with_name("turned"), link)


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], None]:
    """Let something happen when half of the tensors are written."""

    def plan(happen: Callable[[], Any]) -> None:
        convert, calls = commands._convert, 0

        def converted(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 20:
                happen()
            return convert(*arguments)

        monkeypatch.setattr(commands, "_convert", converted)

    return plan


@pytest.mark.parametrize("form", FORMS)
def test_a_link_that_turns_and_a_checkpoint_that_goes(
    tmp_path: Path, dense_checkpoint: Path, meanwhile: Callable[..., None], form: str
) -> None:
    first = FORMS[form](dense_checkpoint, tmp_path / "first", lambda content: None)
    second = FORMS[form](dense_checkpoint, tmp_path / "second", double)
    export(first, tmp_path / "of-first")
    export(second, tmp_path / "of-second")
    assert content_of(tmp_path / "of-first") != content_of(tmp_path / "of-second")
    (tmp_path / "latest").symlink_to(first)

    def save_next() -> None:
        turn(tmp_path / "latest", second)
        shutil.rmtree(first) if first.is_dir() else first.unlink()
        os.replace(second, first)  # even its name is taken

    meanwhile(save_next)
    export(tmp_path / "latest", tmp_path / "out")
    assert content_of(tmp_path / "out") == content_of(tmp_path / "of-first")


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_that_is_written_over(
    tmp_path: Path, dense_checkpoint: Path, meanwhile: Callable[..., None], form: str
) -> None:
    first = FORMS[form](dense_checkpoint, tmp_path / "first", lambda content: None)
    second = FORMS[form](dense_checkpoint, tmp_path / "second", double)
    before = sorted(tmp_path.rglob("*"))

    def save_over() -> None:
        for path in (first, *first.glob("*.distcp")):
            if path.is_file():
                path.write_bytes((second / path.name if second.is_dir() else second).read_bytes())

    meanwhile(save_over)
    with pytest.raises(InputError, match="is damaged|was written to while it was read"):
        export(first, tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_turns_between_its_metadata_and_its_data(
    tmp_path: Path, dense_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sharded(dense_checkpoint, tmp_path / "first")
    second = sharded(dense_checkpoint, tmp_path / "second", double)
    export(first, tmp_path / "of-first")
    read = commands.Sharded._read_metadata

    def turned(self: commands.Sharded) -> Any:
        made = read(self)
        os.replace(first, tmp_path / "gone")
        os.replace(second, first)
        return made

    monkeypatch.setattr(commands.Sharded, "_read_metadata", turned)
    export(first, tmp_path / "out")
    assert content_of(tmp_path / "out") == content_of(tmp_path / "of-first")


def test_every_file_is_closed(tmp_path: Path, dense_checkpoint: Path) -> None:
    folder = sharded(dense_checkpoint, tmp_path / "sharded")
    export(folder, tmp_path / "first")  # opens what stays open
    before = len(os.listdir("/proc/self/fd"))
    export(folder, tmp_path / "second")
    export(dense_checkpoint, tmp_path / "third")
    with pytest.raises(InputError, match="is a dense|holds no masks"):
        commands.shear(folder, tmp_path / "fourth")
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_not_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is not a file"):
        export(tmp_path / "pipe", tmp_path / "out")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match="There is no checkpoint"):
        export(tmp_path / "loop", tmp_path / "out")
