"""Whatever is wrong with a preparation's input or output ends it with exit code 2 and one line, and costs nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from llmshearing.data_prep import debug_corpus, demo_corpus, demo_model, packages, prepare, train_tokenizer
from tests.conftest import no_more_than

WriteJsonl = Callable[..., Path]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, texts: list[str], write_jsonl: WriteJsonl) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "corpus"
    write_jsonl(folder / "code" / "a.jsonl", texts[:300])
    write_jsonl(folder / "code" / "b.jsonl", texts[300:600])
    return folder


def refused(main: Callable[[Sequence[str]], None], arguments: list[object], capsys: pytest.CaptureFixture[str]) -> str:
    """The line with which the command ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in error
    return error


def command(corpus: object, out: object, tokenizer: object, *options: str) -> list[object]:
    return [
        corpus,
        out,
        "--tokenizer",
        tokenizer,
        "--seq-len",
        "64",
        "--eval-sequences",
        "3",
        "--workers",
        "1",
        *options,
    ]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--max-bad-share", value) for value in ("nan", "-1", "2", "inf", "abc")),
        *(("--seq-len", value) for value in ("0", "-1", "1", "abc", "1e9", "1.5", "9" * 30)),
        *(("--eval-sequences", value) for value in ("-1", "0", "abc", "9" * 30)),
        *(("--workers", value) for value in ("0", "-1", "abc", "9" * 30)),
        ("--token-type", "int8"),
        ("--text-key", ""),
    ],
)
def test_options_out_of_range_are_named(
    option: str, value: str, corpus: Path, sentencepiece_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(prepare.main, command(corpus, tmp_path / "out", sentencepiece_model, f"{option}={value}"), capsys)
    assert option in error
    assert value.removesuffix(".0") in error
    assert not (tmp_path / "out").exists()


TOKENIZERS = {
    "nowhere": {},
    "empty": {"README": ""},
    "list": {"tokenizer_config.json": "[1]"},
    "config": {"config.json": "[1]"},
    "class": {"tokenizer.json": "{}", "tokenizer_config.json": "{}"},
    "unknown": {"tokenizer_config.json": '{"tokenizer_class": "Nothing"}'},
    "torn": {"tokenizer.json": '{"mod', "tokenizer_config.json": '{"tokenizer_cl'},
    "binary": {"tokenizer.json": "\0\1", "tokenizer_config.json": '{"tokenizer_class": "LlamaTokenizerFast"}'},
    "code": {"tokenizer_config.json": '{"auto_map": {"AutoTokenizer": ["a.B", null]}, "tokenizer_class": "B"}'},
    "file.json": None,
    "file.model": None,
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_is_no_tokenizer_is_named(
    name: str, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = TOKENIZERS[name]
    if files is None:
        (tmp_path / name).touch()
    for file, text in (files or {}).items():
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / file).write_text(text)
    error = refused(prepare.main, command(corpus, tmp_path / "out", tmp_path / name), capsys)
    assert str(tmp_path / name) in error
    assert len(error) < 600


ANYWHERE = ["file", "file/out", "/proc/out", "/dev/full", "x" * 300]
PLACES = [
    (script, out) for script in (prepare, train_tokenizer, debug_corpus, demo_corpus, demo_model) for out in ANYWHERE
]
PLACES += [(script, out) for script in (prepare, train_tokenizer) for out in ("IN", "IN/out")]


@pytest.mark.parametrize(("script", "out"), PLACES, ids=lambda value: getattr(value, "__name__", value))
def test_places_that_cannot_be_written_are_named(
    script: object, out: str, corpus: Path, sentencepiece_model: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "file").touch()
    place = tmp_path / out.replace("IN", str(corpus))
    if script is prepare:
        error = refused(prepare.main, command(corpus, place, sentencepiece_model), capsys)
    elif script is train_tokenizer:
        error = refused(train_tokenizer.main, [corpus, place, "--overwrite"], capsys)
    else:
        monkeypatch.setattr(packages.subprocess, "run", lambda *args, **kwargs: pytest.fail("fetched something"))
        error = refused(script.main, [place], capsys)  # type: ignore[attr-defined]
    assert str(place) in error
    assert list((corpus / "code").parent.iterdir()) == [corpus / "code"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", None, r"a\.parquet' has none of the columns .*--text-key"),
        ("a.parquet", b"", r"a\.parquet' cannot be read"),
        ("a.jsonl", bytes(range(256)) * 10, r"a\.jsonl:1: "),
        ("a.txt", bytes(range(256)), r"a\.txt:1: not UTF-8"),
        ("a.jsonl.gz", b"", r"a\.jsonl\.gz' cannot be read"),
        ("a.jsonl", b"", "Domain 'd' is too small: its 0 different documents"),
        ("a.jsonl", b'{"text": ""}\n' * 5, "Domain 'd' is too small: its 0 different documents"),
    ],
)
def test_files_that_hold_no_documents_are_named(
    name: str, content: bytes | None, message: str, sentencepiece_model: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "in" / "d").mkdir(parents=True)
    if content is None:
        pyarrow.parquet.write_table(pyarrow.table({"title": ["x"]}), tmp_path / "in" / "d" / name)
    else:
        (tmp_path / "in" / "d" / name).write_bytes(content)
    error = refused(prepare.main, command(tmp_path / "in", tmp_path / "out", sentencepiece_model), capsys)
    assert re.search(message, error), error


@pytest.mark.parametrize("size", [30_000, 150_000], ids=["tokenizing", "packing"])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    size: int, corpus: Path, sentencepiece_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(corpus, tmp_path / "out", sentencepiece_model)
    with no_more_than(size):
        error = refused(prepare.main, arguments, capsys)
    assert re.search(f"'{tmp_path / 'out'}.*': File too large", error), error
    parts = [path.name for path in (tmp_path / "out").rglob("*.tokens")]
    assert sorted(parts) == ([] if size == 30_000 else ["a.jsonl.tokens", "b.jsonl.tokens"])
    prepare.main([str(argument) for argument in arguments])
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["domains"]["code"]["documents"] == 600


@pytest.mark.parametrize(
    "options", [["--vocab-size=-1"], ["--vocab-size=10"], ["--vocab-size=abc"], ["--vocab-size", "9" * 20],
                ["--bytes-per-domain=0"], ["--bytes-per-domain=1"]]
)  # fmt: skip
def test_no_tokenizer_is_trained_of_numbers_out_of_range(
    options: list[str], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(train_tokenizer.main, [corpus, tmp_path / "out", *options], capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_replaces_no_other_folder(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    error = refused(train_tokenizer.main, [corpus, tmp_path / "mine", "--overwrite"], capsys)
    assert f"'{tmp_path / 'mine'}' is not a tokenizer's folder" in error
    assert (tmp_path / "mine" / "thesis.txt").exists()
