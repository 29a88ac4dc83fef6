"""Folders that appear complete or not at all, and never in the place of something else."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from llmshearing import fileio
from llmshearing.errors import InputError
from llmshearing.fileio import files_below, new_folder, read_json


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_files_are_listed_while_folders_come_and_go(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("")
    ended = threading.Event()

    def come_and_go() -> None:
        while not ended.is_set():
            (tmp_path / "between").mkdir()
            (tmp_path / "between").rmdir()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        listings = [files_below(tmp_path) for _ in range(3000)]
    finally:
        ended.set()
        thread.join()
    assert all(files == [tmp_path / "kept" / "file"] for files in listings)


def fill(path: Path, *, overwrite: bool = False, meanwhile: Callable[[], object] = lambda: None) -> None:
    with new_folder(path, overwrite=overwrite) as folder:
        (folder / "mine").write_text("new")
        meanwhile()


@pytest.mark.parametrize("name", ["out", "above/between/out"])
def test_it_appears_only_when_complete(tmp_path: Path, name: str) -> None:
    with pytest.raises(ZeroDivisionError):
        fill(tmp_path / name, meanwhile=lambda: 1 // 0)
    assert listing(tmp_path) == []
    fill(tmp_path / name, meanwhile=lambda: listing(tmp_path))
    assert (tmp_path / name / "mine").read_text() == "new"


@pytest.mark.parametrize("overwrite", [True, False])
def test_what_appears_meanwhile_stays(tmp_path: Path, overwrite: bool) -> None:
    out = tmp_path / "out"

    def appear() -> None:
        out.mkdir()
        (out / "precious").write_text("old")

    if overwrite:  # of a folder, if one is there by then
        fill(out, overwrite=True, meanwhile=appear)
        assert listing(tmp_path) == ["out", "out/mine"]
        return
    with pytest.raises(InputError, match="appeared while the work was done"):
        fill(out, meanwhile=appear)
    assert listing(tmp_path) == ["out", "out/precious"]
    (out / "precious").unlink()
    out.rmdir()
    with pytest.raises(InputError, match="appeared while the work was done"):
        fill(out, overwrite=True, meanwhile=lambda: out.write_text("old"))
    assert out.read_text() == "old"
    assert listing(tmp_path) == ["out"]


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "out").mkdir()
    (tmp_path / "scratch" / "out" / "old").touch()
    (tmp_path / "link").symlink_to("scratch/out")
    with pytest.raises(InputError, match="exists already"):
        fill(tmp_path / "link")
    fill(tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert listing(tmp_path) == ["link", "scratch", "scratch/out", "scratch/out/mine"]
    (tmp_path / "dangling").symlink_to("scratch/other")
    fill(tmp_path / "dangling")
    assert (tmp_path / "scratch" / "other" / "mine").is_file()


def test_the_old_folder_comes_back_where_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, rename, calls = tmp_path / "out", os.rename, 0

    def full(old: Path, new: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(old, new)

    out.mkdir()
    (out / "precious").touch()
    monkeypatch.setattr(fileio.os, "rename", full)
    with pytest.raises(OSError, match="No space"):
        fill(out, overwrite=True)
    assert listing(tmp_path) == ["out", "out/precious"]


def test_places_that_cannot_be_are_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    before = listing(tmp_path)
    for place, overwrite, message in (
        ("", True, "is ''"),
        (".", True, "is the folder that the command runs in, or above it"),
        ("..", True, "is the folder that the command runs in, or above it"),
        ("/", True, "is the folder that the command runs in, or above it"),
        (".", False, "exists already"),
        (tmp_path / "file", True, "is not a folder"),
        (tmp_path / "file", False, "is not a folder"),
        (tmp_path / "file" / "out", False, "Cannot write"),
        (tmp_path / "loop" / "out", False, "Cannot write"),
        ("/proc/out", False, "Cannot write"),
        (tmp_path / ("long" * 100), False, "Cannot write"),
        ("no\0name", False, "Cannot write"),
    ):
        with pytest.raises(InputError, match=message):
            fill(place, overwrite=overwrite)  # type: ignore[arg-type]
    assert listing(tmp_path) == before


def test_json_that_is_none_is_named(tmp_path: Path) -> None:
    for content, message in ((b"{", "not valid JSON"), (b"\xff", "not valid JSON"), (b"[" * 10**5, "not valid JSON")):
        (tmp_path / "file.json").write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_json(tmp_path / "file.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path)
    with pytest.raises(InputError, match="There is no file"):
        read_json(tmp_path / "none.json")
