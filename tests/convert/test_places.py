"""Where a conversion may write: what is refused, before the work where possible, and what is never lost."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmshearing.convert import commands
from llmshearing.convert.commands import shear
from llmshearing.errors import InputError
from tests.conftest import no_more_than
from tests.convert.checkpoints import changed, sharded
from tests.convert.conftest import refusal
from tests.convert.test_broken import poison


def model_folder(path: Path) -> Path:
    path.mkdir()
    for name in ("config.json", "model.safetensors", "notes.txt"):
        (path / name).write_text("old")
    return path


def test_places_that_cannot_be_written(
    tmp_path: Path, checkpoint: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "here").mkdir()
    monkeypatch.chdir(tmp_path / "taken" / "here")
    for out, message in (
        (tmp_path / "file" / "out", "Cannot write"),
        (tmp_path / "file", "is not a folder"),
        ("/proc/sheared", "Cannot write"),  # read-only, even for root
        (tmp_path / "taken", "exists already. Choose another place, or pass --overwrite"),
        (".", "exists already"),
        ("/", "exists already"),
        ("", "give it a name"),
        (checkpoint, "is not a folder"),
    ):
        assert message in refused(checkpoint, out=out)
    for out in (".", "/", ".."):
        assert "is the folder that the command runs in, or above it" in refused(checkpoint, "--overwrite", out=out)
    for size in ("5 parsecs", "infGB", "nanGB", "-1GB", "", "GB", "0KB"):
        assert "--max-shard-size is" in refused(checkpoint, "--max-shard-size=" + size)


def test_only_a_model_is_replaced(tmp_path: Path, checkpoint: Path, refused: Callable[..., str]) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "config.json").touch()
    assert "is not a Hugging Face model" in refused(checkpoint, "--overwrite", out=photos)
    run = model_folder(tmp_path / "run")
    (run / "checkpoints").mkdir()
    assert "holds the folder 'checkpoints'" in refused(checkpoint, "--overwrite", out=run)
    shutil.rmtree(run / "checkpoints")
    folder = sharded(checkpoint, tmp_path / "sharded")
    assert "is or holds" in refused(folder, "--overwrite", out=folder)
    assert "is or holds" in refused(folder / "__0_0.distcp", "--overwrite", out=folder)
    shear(folder, run, overwrite=True)
    assert not (run / "notes.txt").exists()
    (tmp_path / "empty").mkdir()
    shear(folder, tmp_path / "empty", overwrite=True)
    assert (tmp_path / "empty" / "config.json").is_file()


def test_a_folder_that_is_overwritten_stays_until_the_new_one_is_complete(
    tmp_path: Path, checkpoint: Path, refused: Callable[..., str]
) -> None:
    out = model_folder(tmp_path / "out")
    refused(changed(checkpoint, tmp_path / "broken.pt", poison), "--overwrite")
    assert (out / "notes.txt").read_text() == "old"


def test_what_appears_meanwhile_stays(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, write = tmp_path / "out", commands.write_files

    def meanwhile(folder: Path, files: dict[str, bytes]) -> None:
        write(folder, files)
        (out / "photos").mkdir(parents=True)

    monkeypatch.setattr(commands, "write_files", meanwhile)
    with pytest.raises(InputError, match="appeared while the work was done"):
        shear(checkpoint, out)
    shutil.rmtree(out)
    with pytest.raises(InputError, match="holds the folder 'photos', so it is not replaced"):
        shear(checkpoint, out, overwrite=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "photos"]


def test_of_two_at_once_one_is_told(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, inner = commands.write_files, []

    def meanwhile(folder: Path, files: dict[str, bytes]) -> None:
        write(folder, files)
        if not inner:
            inner.append(True)
            shear(checkpoint, tmp_path / "out")

    monkeypatch.setattr(commands, "write_files", meanwhile)
    with pytest.raises(InputError, match="appeared while the work was done"):
        shear(checkpoint, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    for _ in range(2):  # a second and a third time
        with pytest.raises(InputError, match="exists already"):
            shear(checkpoint, tmp_path / "out")
        shear(checkpoint, tmp_path / "out", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_full_disk(tmp_path: Path, checkpoint: Path, refused: Callable[..., str]) -> None:
    with no_more_than(20_000):
        error = refused(checkpoint, out=tmp_path / "above" / "out")
    assert error == f"error: Cannot write '{tmp_path / 'above' / 'out'}': File too large. Nothing was left behind.\n"


ARGUMENTS: dict[str, tuple[list[str], str]] = {
    "no command": ([], "required: command"),
    "another command": (["convert"], "invalid choice: 'convert'"),
    "no checkpoint": (["shear"], "required: checkpoint, out"),
    "no place": (["export", "a.pt"], "required: out"),
    "one too many": (["shear", "a.pt", "out", "more"], "unrecognized arguments: more"),
    "unknown option": (["shear", "a.pt", "out", "--seed", "3"], "unrecognized arguments: --seed 3"),
    "dtype": (["shear", "a.pt", "out", "--dtype", "float8"], "argument --dtype: invalid choice: 'float8'"),
    "dtype without value": (["export", "a.pt", "out", "--dtype"], "argument --dtype: expected one argument"),
    "no data": (["rotate", "model", "out"], "required: --data"),
    "sequences": (["rotate", "model", "out", "--data", "d", "--sequences", "many"], "invalid int value: 'many'"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_command_that_is_wrong_is_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = ARGUMENTS[name]
    monkeypatch.setattr(sys, "argv", ["convert", *arguments])
    assert message in refusal(capsys)


def test_checkpoints_that_are_none(tmp_path: Path, checkpoint: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "empty.pt").touch()
    (tmp_path / "folder").mkdir()
    shutil.make_archive(str(tmp_path / "stored"), "zip", tmp_path / "folder")
    (tmp_path / "text.txt").write_text("words " * 1000)
    shutil.make_archive(str(tmp_path / "other"), "zip", tmp_path, "text.txt")
    for place, message in (
        (tmp_path / "none.pt", "There is no checkpoint"),
        ("", "has no .metadata file"),
        ("/dev/null", "is not a file"),
        (tmp_path / "empty.pt", "is truncated or damaged, or not written by torch.save"),
        (tmp_path / "text.txt", "is truncated or damaged, or not written by torch.save"),
        (tmp_path / "other.zip", "is compressed or damaged"),
        (tmp_path / "stored.zip", "is truncated or damaged"),
        (tmp_path / "folder", "has no .metadata file"),
        (tmp_path / ("long" * 100), "There is no checkpoint"),
        ("no\0name", "There is no checkpoint"),
    ):
        for command in ("shear", "export"):
            assert message in refused(place, command=command)
