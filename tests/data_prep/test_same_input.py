"""A complete output is left as it is for the same input alone; what killed runs leave is removed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llmshearing.data_prep import output
from llmshearing.data_prep.prepare import prepare
from llmshearing.data_prep.tokenizer import Tokenizer
from llmshearing.errors import InputError

WriteJsonl = Callable[..., Path]
OPTIONS = {"seq_len": 64, "eval_sequences": 3}


@pytest.fixture(scope="module")
def prepared(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, texts: list[str], write_jsonl: WriteJsonl
) -> Path:
    """A folder with a corpus and its output."""
    folder = tmp_path_factory.mktemp("prepared")
    write_jsonl(folder / "corpus" / "code" / "a.jsonl", texts[:200])
    write_jsonl(folder / "corpus" / "code" / "b.jsonl", texts[200:400])
    prepare(folder / "corpus", folder / "out", tokenizer=tokenizer, **OPTIONS)
    return folder


@pytest.fixture
def copy(prepared: Path, tmp_path: Path) -> Path:
    shutil.copytree(prepared, tmp_path / "copy")  # with the times of the files
    return tmp_path / "copy"


def again(folder: Path, tokenizer: Tokenizer) -> None:
    prepare(folder / "corpus", folder / "out", tokenizer=tokenizer, **OPTIONS)


def test_a_file_rewritten_at_the_same_size_is_noticed(copy: Path, tokenizer: Tokenizer) -> None:
    path = copy / "corpus" / "code" / "b.jsonl"
    changed = path.read_text(encoding="utf-8").replace("self", "this")
    assert len(changed.encode()) == path.stat().st_size
    path.write_text(changed, encoding="utf-8")
    with pytest.raises(InputError, match=r"another input: the file 'code/b\.jsonl' has changed"):
        again(copy, tokenizer)


@pytest.mark.parametrize("change", ["renamed", "gone", "longer", "domain"])
def test_other_files_are_noticed(change: str, copy: Path, tokenizer: Tokenizer) -> None:
    path = copy / "corpus" / "code" / "b.jsonl"
    match change:
        case "renamed":
            path.rename(path.with_name("c.jsonl"))
        case "gone":
            path.unlink()
        case "longer":
            path.write_bytes(path.read_bytes() + b"\n")
        case "domain":
            shutil.copytree(copy / "corpus" / "code", copy / "corpus" / "more")
    with pytest.raises(
        InputError, match="another input: the file '(code/b|more/a).jsonl' (is gone|has changed|is new)"
    ):
        again(copy, tokenizer)


def test_a_copy_of_the_input_is_the_same_and_read_only_where_its_times_differ(
    copy: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    whole = output.file_sha256
    monkeypatch.setattr(output, "file_sha256", lambda path: read.append(path.name) or whole(path))
    again(copy, tokenizer)
    assert read == []
    os.utime(copy / "corpus" / "code" / "b.jsonl", ns=(0, 0))
    again(copy, tokenizer)
    assert read == ["b.jsonl"]


@pytest.mark.parametrize("name", ["manifest.json", "input.json"])
@pytest.mark.parametrize("content", [[1], {"code": 5}, "text", {"tokenizer": [1]}])
def test_a_manifest_of_someone_else_is_refused(name: str, content: object, copy: Path, tokenizer: Tokenizer) -> None:
    (copy / "out" / name).write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"(manifest|input)\.json'"):
        again(copy, tokenizer)


def test_what_killed_workers_left_is_removed(copy: Path, tokenizer: Tokenizer) -> None:
    unfinished = copy / "new" / ".partial" / "unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "0123.tokens").write_bytes(bytes(1000))
    with pytest.raises(InputError, match="too small"):
        prepare(copy / "corpus", copy / "new", tokenizer=tokenizer, seq_len=64, eval_sequences=10**6)
    assert list(unfinished.iterdir()) == []
