"""Documents out of files of every format, and what is wrong with the rest."""

from __future__ import annotations

import gzip
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from llmshearing.data_prep.corpus import SourceFile, find_corpus
from llmshearing.data_prep.readers import (
    BadLine,
    Document,
    EmptyDocument,
    check_beginning,
    read_documents,
)
from llmshearing.errors import InputError

WriteJsonl = Callable[..., Path]


def texts_of(path: Path, **options: str) -> list[str]:
    documents = list(read_documents(path, **options))
    assert all(isinstance(document, Document) for document in documents), documents
    return [document.text for document in documents if isinstance(document, Document)]


def test_every_format_gives_the_same_texts(tmp_path: Path, unicode_texts: list[str], write_jsonl: WriteJsonl) -> None:
    plain = write_jsonl(tmp_path / "plain.jsonl", unicode_texts).read_bytes()
    (tmp_path / "lines.json").write_bytes(plain)
    (tmp_path / "zipped.jsonl.gz").write_bytes(gzip.compress(plain))
    (tmp_path / "zstd.jsonl.zst").write_bytes(pyarrow.compress(plain, codec="zstd", asbytes=True))
    pyarrow.parquet.write_table(
        pyarrow.table({"id": range(len(unicode_texts)), "text": unicode_texts}), tmp_path / "rows.parquet"
    )
    for path in tmp_path.iterdir():
        assert texts_of(path) == unicode_texts, path.name


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    text = "first line\n\nsecond — line\r\n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text.encode()))
    assert texts_of(tmp_path / "a.txt") == texts_of(tmp_path / "b.txt.gz") == [text]


def test_every_frame_and_member_of_a_compressed_file_is_read(tmp_path: Path) -> None:
    halves = [json.dumps({"text": text}).encode() + b"\n" for text in ("one", "two")]
    (tmp_path / "a.jsonl.zst").write_bytes(
        b"".join(pyarrow.compress(half, codec="zstd", asbytes=True) for half in halves)
    )
    (tmp_path / "b.jsonl.gz").write_bytes(b"".join(gzip.compress(half) for half in halves))
    assert texts_of(tmp_path / "a.jsonl.zst") == texts_of(tmp_path / "b.jsonl.gz") == ["one", "two"]


def test_usual_keys_are_found_and_any_key_can_be_named(tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    assert texts_of(write_jsonl(tmp_path / "a.jsonl", ["x"], key="raw_content")) == ["x"]
    assert texts_of(write_jsonl(tmp_path / "b.jsonl", ["x"], key="Inhalt"), text_key="Inhalt") == ["x"]
    pyarrow.parquet.write_table(pyarrow.table({"content": ["x"]}), tmp_path / "c.parquet")
    assert texts_of(tmp_path / "c.parquet") == ["x"]
    (tmp_path / "d.jsonl").write_text('{"content": "second", "text": "first"}', encoding="utf-8")
    assert texts_of(tmp_path / "d.jsonl") == ["first"]


def test_bad_lines_are_named_by_line_and_reason(tmp_path: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"text": "after a byte order mark"}',
        b"",
        b'{"text": "cut off',
        b'{"title": "no text"}',
        b'["text"]',
        b'{"text": null}',
        b'{"text": "\\ud800"}',
        b'{"text": "\xff"}',
        b'{"text": ""}',
        b"[" * 100_000,
        b'{"text": "x", "number": ' + b"9" * 5000 + b"}",
        b'{"text": "last"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    found = list(read_documents(tmp_path / "a.jsonl"))
    assert [document for document in found if isinstance(document, Document)] == [
        Document(1, "after a byte order mark"),
        Document(12, "last"),
    ]
    reasons = {document.line: document.reason for document in found if isinstance(document, BadLine)}
    assert list(reasons) == [3, 4, 5, 6, 7, 8, 10, 11]
    assert [document.line for document in found if isinstance(document, EmptyDocument)] == [9]
    expected = {3: "JSON", 4: "title", 5: "list", 6: "NoneType", 7: "surrogate", 8: "UTF-8", 11: "4300 digits"}
    for line, word in expected.items():
        assert word in reasons[line]


def test_bytes_that_are_no_text_in_a_parquet_column_are_a_bad_row(tmp_path: Path) -> None:
    wrong = pyarrow.Array.from_buffers(
        pyarrow.string(), 2, [None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\3\0\0\0"), pyarrow.py_buffer(b"a\xff\xfe")]
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": wrong}), tmp_path / "a.parquet")
    first, second = read_documents(tmp_path / "a.parquet")
    assert first == Document(1, "a")
    assert isinstance(second, BadLine)
    assert "utf-8" in second.reason


def test_a_null_in_a_parquet_column_is_a_bad_row(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None, "b"]}), tmp_path / "a.parquet")
    assert [(type(item), item.line) for item in read_documents(tmp_path / "a.parquet")] == [
        (Document, 1),
        (BadLine, 2),
        (Document, 3),
    ]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_truncated_file_stops_with_its_name(
    tmp_path: Path, name: str, texts: list[str], write_jsonl: WriteJsonl
) -> None:
    path = tmp_path / name
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)
    else:
        plain = write_jsonl(tmp_path / "plain.jsonl", texts).read_bytes()
        path.write_bytes(
            gzip.compress(plain) if name.endswith("gz") else pyarrow.compress(plain, codec="zstd", asbytes=True)
        )
    whole = path.read_bytes()
    for part in (whole[:-200], b""):
        path.write_bytes(part)
        with pytest.raises(InputError, match=name):
            list(read_documents(path))


def test_a_parquet_file_without_the_column_lists_those_it_has(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"title": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"only title.*--text-key"):
        list(read_documents(tmp_path / "a.parquet"))


def test_domains_and_files_come_in_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("wiki/b.jsonl", "wiki/part/a.jsonl.gz", "book/x.txt", "wiki/.hidden.jsonl", "wiki/README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".git").mkdir()
    with caplog.at_level(logging.WARNING):
        domains = find_corpus(tmp_path)
    assert {domain: [file.name for file in files] for domain, files in domains.items()} == {
        "book": ["x.txt"],
        "wiki": ["b.jsonl", "part/a.jsonl.gz"],
    }
    assert list(domains) == ["book", "wiki"]
    assert "README.md" in caplog.text
    assert "hidden" not in caplog.text


def test_links_are_followed_to_files_and_folders(tmp_path: Path) -> None:
    for name in ("store/part/deep/a.jsonl", "corpus/wiki/b.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "corpus" / "wiki" / "more").symlink_to(tmp_path / "store" / "part")
    (tmp_path / "corpus" / "wiki" / "c.jsonl").symlink_to(tmp_path / "store" / "part" / "deep" / "a.jsonl")
    (tmp_path / "corpus" / "all").symlink_to(tmp_path / "store")
    domains = find_corpus(tmp_path / "corpus")
    assert {domain: [file.name for file in files] for domain, files in domains.items()} == {
        "all": ["part/deep/a.jsonl"],
        "wiki": ["b.jsonl", "c.jsonl", "more/deep/a.jsonl"],
    }


@pytest.mark.parametrize(
    ("link", "target", "message"),
    [
        ("wiki/gone.jsonl", "nowhere", r"gone\.jsonl' is a link to 'nowhere', which does not exist"),
        ("wiki/gone", "nowhere", r"gone' is a link to 'nowhere', which does not exist"),
        ("gone", "nowhere", r"gone' is a link to 'nowhere', which does not exist"),
        ("wiki/self", "self", r"self' is a link to 'self', which does not exist"),
        ("wiki/part/again", "../../wiki", r"again' is a link to a folder that it lies in"),
        ("wiki/part/corpus", "../..", r"wiki' is a link to a folder that it lies in|corpus/wiki/part/corpus"),
    ],
)
def test_links_that_lead_nowhere_or_back_are_refused(link: str, target: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "wiki" / "part").mkdir(parents=True)
    (tmp_path / "wiki" / "a.jsonl").touch()
    (tmp_path / link).symlink_to(target)
    with pytest.raises(InputError, match=message):
        find_corpus(tmp_path)


def test_what_is_no_file_and_names_that_are_no_text_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "wiki").mkdir()
    (tmp_path / "wiki" / "a.jsonl").touch()
    os.mkfifo(tmp_path / "wiki" / "pipe.jsonl")
    assert len(find_corpus(tmp_path)["wiki"]) == 1
    assert "pipe.jsonl is left out: it is no regular file" in caplog.text
    os.close(os.open(os.fsencode(tmp_path / "wiki") + b"/\xff.jsonl", os.O_CREAT))
    with pytest.raises(InputError, match="not UTF-8. Rename it"):
        find_corpus(tmp_path)


def test_a_corpus_that_is_none_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        find_corpus(tmp_path / "missing")
    with pytest.raises(InputError, match="no domain folders"):
        find_corpus(tmp_path)
    (tmp_path / "wiki").mkdir()
    with pytest.raises(InputError, match=r"wiki.*known format"):
        find_corpus(tmp_path)
    (tmp_path / "stray.jsonl").touch()
    with pytest.raises(InputError, match=r"stray\.jsonl.*no domain"):
        find_corpus(tmp_path)


def test_a_wrong_key_shows_at_the_beginning(tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["x"] * 100, key="Inhalt")
    file = SourceFile("wiki", "a.jsonl", path)
    with pytest.raises(InputError, match=r"a\.jsonl:1: .*Inhalt.*--text-key"):
        check_beginning(file, text_key=None)
    check_beginning(file, text_key="Inhalt")
