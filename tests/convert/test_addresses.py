"""Checkpoints from and models to an object store, by the command."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file

from llmshearing import copies, storage
from llmshearing.convert.__main__ import main
from tests.convert.checkpoints import sharded
from tests.convert.conftest import refusal
from tests.object_store import Store

OUT = "s3://bucket/models/sheared"


@pytest.fixture
def stored(store: Store, checkpoint: Path) -> str:
    """The address of Composer's link to a pruning checkpoint."""
    storage.upload(checkpoint, "s3://bucket/run/checkpoints/ep0-ba2-rank0.pt")
    storage.write_bytes("s3://bucket/run/checkpoints/latest-rank0.pt.symlink", b"run/checkpoints/ep0-ba2-rank0.pt")
    return "s3://bucket/run/checkpoints/latest-rank0.pt"


@pytest.fixture
def convert(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def run(*words: str | Path) -> None:
        monkeypatch.setattr(sys, "argv", ["convert", *map(str, words)])
        main()

    return run


def test_a_model_sheared_from_and_to_addresses_has_the_bytes_of_one_from_and_to_a_disk(
    stored: str, checkpoint: Path, convert: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    convert("shear", checkpoint, tmp_path / "out", "--max-shard-size", "20KB")
    convert("shear", stored, OUT, "--max-shard-size", "20KB")
    expected = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert {name: storage.read_bytes(f"{OUT}/{name}") for name in storage.files_below(OUT)} == expected
    assert not list((tmp_path / "tmp").iterdir())


@pytest.fixture
def stored_in_shards(store: Store, checkpoint: Path, tmp_path: Path) -> str:
    """The address of Composer's link to the same checkpoint in shards, whose optimizer has stepped."""
    for path in sharded(checkpoint, tmp_path / "ep0-ba2").iterdir():
        storage.upload(path, f"s3://bucket/sharded/ep0-ba2/{path.name}")
    storage.write_bytes("s3://bucket/sharded/latest-rank0.pt.symlink", b"sharded/ep0-ba2")
    return "s3://bucket/sharded/latest-rank0.pt"


def test_of_a_sharded_checkpoint_all_but_the_optimizers_tensors_is_fetched(
    stored_in_shards: str,
    checkpoint: Path,
    convert: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fetched: dict[str, int] = {}

    def fetch(
        place: str, target: Path, parts: list[tuple[int, int]] | None = None, real: Any = storage.download
    ) -> None:
        real(place, target, parts)
        if parts is not None:
            fetched[place] = sum(end - begin for begin, end in parts)
        assert target.stat().st_size == (tmp_path / "ep0-ba2" / target.name).stat().st_size

    monkeypatch.setattr(storage, "download", fetch)
    convert("shear", checkpoint, tmp_path / "out")
    convert("shear", stored_in_shards, tmp_path / "again")
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    written = sum(path.stat().st_size for path in (tmp_path / "ep0-ba2").glob("*.distcp"))
    assert 0.1 * written < sum(fetched.values()) < 0.4 * written


def test_a_sharded_checkpoint_that_is_cut_off_or_lacks_a_file_is_named_by_its_address(
    stored_in_shards: str,
    store: Store,
    convert: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(sys, "argv", ["convert", "shear", stored_in_shards, str(tmp_path / "out")])
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    folder, (name,) = "s3://bucket/sharded/ep0-ba2", (path.name for path in (tmp_path / "ep0-ba2").glob("*.distcp"))
    fault = store.fail(path=name, cut=100, times=1000)
    assert f"'{folder}/{name}' cannot be reached" in refusal(capsys)
    fault.times = 0
    whole = storage.read_bytes(f"{folder}/{name}")
    for length in (len(whole) - 10, 10):
        storage.write_bytes(f"{folder}/{name}", whole[:length])
        assert f"'{folder}/{name}' is truncated: it has {length} bytes of {len(whole)}" in refusal(capsys)
    storage.remove(f"{folder}/{name}")
    assert f"'{folder}' lacks its file '{name}'" in refusal(capsys)
    storage.write_bytes(f"{folder}/.metadata", b"nothing of ours")
    assert f"'{folder}/.metadata' is truncated or damaged" in refusal(capsys)
    assert not (tmp_path / "out").exists()


def test_a_model_at_an_address_is_complete_once_its_config_is_there_and_replaced_only_if_asked(
    stored: str, store: Store, convert: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def order() -> list[str]:
        return [path for method, path in store.requests if method in ("PUT", "DELETE") and "models" in path]

    convert("shear", stored, OUT)
    assert order()[-1].endswith("/config.json")
    sys.argv[1:] = ["shear", stored, OUT]
    assert f"'{OUT}' exists already" in refusal(capsys)
    storage.write_bytes(f"{OUT}/old.safetensors", b"of another")
    store.requests.clear()
    convert("shear", stored, OUT, "--overwrite")
    assert order()[0].endswith("/config.json")
    assert order()[-1].endswith("/config.json")
    assert "old.safetensors" not in storage.files_below(OUT)
    storage.write_bytes(f"{OUT}/below/x", b"somebody's")
    sys.argv[1:] = ["shear", stored, OUT, "--overwrite"]
    assert "holds the folder 'below'" in refusal(capsys)
    sys.argv[1:] = ["shear", stored, "s3://bucket/run", "--overwrite"]
    assert "Choose another place" in refusal(capsys)


def test_what_cannot_be_read_or_has_no_room_is_one_line_that_names_the_address(
    stored: str,
    store: Store,
    dense_checkpoint: Path,
    convert: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    out = str(tmp_path / "out")
    convert("shear", stored, out)  # to set argv
    shutil.rmtree(out)
    sys.argv[1:] = ["shear", "s3://bucket/none", out]
    assert "There is nothing at 's3://bucket/none'" in refusal(capsys)
    storage.upload(dense_checkpoint, "s3://bucket/dense.pt")
    sys.argv[1:] = ["shear", "s3://bucket/dense.pt", out]
    assert "'s3://bucket/dense.pt' holds no masks" in refusal(capsys)
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    store.fail(path="ep0-ba2-rank0.pt", cut=100, times=1000)
    sys.argv[1:] = ["shear", stored, out]
    assert "ep0-ba2-rank0.pt' cannot be reached" in refusal(capsys)
    store.faults.clear()
    monkeypatch.setattr(copies.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    assert "Set TMPDIR" in refusal(capsys)
    assert not Path(out).exists()


def test_a_model_in_a_store_is_exported_again(stored: str, convert: Callable[..., None], tmp_path: Path) -> None:
    convert("shear", stored, OUT)
    convert("export", OUT, tmp_path / "out")
    storage.download(f"{OUT}/model.safetensors", tmp_path / "copy.safetensors")
    found, expected = (load_file(path) for path in (tmp_path / "out/model.safetensors", tmp_path / "copy.safetensors"))
    assert found.keys() == expected.keys()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["hidden_size"]
