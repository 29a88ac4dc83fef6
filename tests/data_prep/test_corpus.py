"""Files in parts, and a corpus in an object store."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from llmshearing import storage
from llmshearing.data_prep.corpus import SourceFile, find_corpus, split_file
from llmshearing.data_prep.readers import Document, read_documents
from llmshearing.errors import InputError
from tests.object_store import Store


def parts_of(path: Path, part_bytes: int) -> list[SourceFile]:
    return split_file(SourceFile("d", path.name, path), path.stat().st_size, part_bytes=part_bytes)


@pytest.mark.parametrize("part_bytes", [1, 2, 7, 30, 64, 1000])
def test_the_parts_of_a_text_file_have_each_of_its_lines_once(part_bytes: int, tmp_path: Path) -> None:
    lines = ['{"text": "a"}', "", "broken", '{"text": "' + "long " * 30 + '"}', " ", '{"text": ""}', '{"text": "ü"}\r']
    for end in ("", "\n", "\n\n\n"):
        path = tmp_path / "a.jsonl"
        path.write_text("\n".join(lines * 2) + end, encoding="utf-8", newline="")
        before, found = 0, []
        parts = parts_of(path, part_bytes)
        assert len(parts) == (1 if part_bytes == 1000 else -(-path.stat().st_size // part_bytes))
        assert len({part.key for part in parts}) == len(parts)
        for part in parts:
            items = list(read_documents(path, start=part.start, stop=part.stop))
            found += [replace(item, line=item.line + before) for item in items]
            before += len(items)
        assert found == list(read_documents(path))
        assert before == path.read_bytes().count(b"\n") + (end == "")


def test_the_parts_of_a_parquet_file_have_each_of_its_rows_once(tmp_path: Path, texts: list[str]) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=90, compression="none")
    for part_bytes in (10, path.stat().st_size // 3, path.stat().st_size):
        parts = parts_of(path, part_bytes)
        assert len(parts) == {10: 12, path.stat().st_size: 1}.get(part_bytes, len(parts))
        items = [item for part in parts for item in read_documents(path, start=part.start, stop=part.stop)]
        assert [item.text for item in items if isinstance(item, Document)] == texts
    assert len(parts_of(path, path.stat().st_size // 3)) in (2, 3, 4)


def test_other_files_are_one_part(tmp_path: Path) -> None:
    for name in ("a.txt", "a.jsonl.gz", "a.jsonl.zst"):
        (tmp_path / name).write_bytes(b"x" * 100)
        assert [(part.start, part.stop) for part in parts_of(tmp_path / name, 10)] == [(0, None)]


def test_a_corpus_in_a_store_is_that_of_the_same_folder(
    tmp_path: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (
        "wiki/b.jsonl",
        "wiki/part/a.jsonl.gz",
        "book/x.txt",
        "wiki/.hidden.jsonl",
        ".git/a",
        "wiki/README.md",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        storage.upload(tmp_path / name, f"s3://bucket/corpus/{name}")
    here, there = find_corpus(tmp_path), find_corpus("s3://bucket/corpus")
    assert {domain: [file.key for file in files] for domain, files in here.items()} == {
        domain: [file.key for file in files] for domain, files in there.items()
    }
    assert caplog.text.count("README.md is left out") == 2
    with pytest.raises(InputError, match="nothing at 's3://bucket/none'"):
        find_corpus("s3://bucket/none")
    storage.write_bytes("s3://bucket/corpus/stray.jsonl", b"")
    with pytest.raises(InputError, match=r"corpus/stray\.jsonl' belongs to no domain"):
        find_corpus("s3://bucket/corpus")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.jsonl", "a.txt"])
def test_every_format_is_read_from_a_store(name: str, tmp_path: Path, texts: list[str], store: Store) -> None:
    path = tmp_path / name
    plain = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    match path.suffix:
        case ".parquet":
            pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)
        case ".gz":
            path.write_bytes(gzip.compress(plain))
        case ".zst":
            path.write_bytes(pyarrow.compress(plain, codec="zstd", asbytes=True))
        case _:
            path.write_bytes(plain)
    storage.upload(path, f"s3://bucket/{name}")
    store.fail(path=name, cut=5000)
    store.fail(path=name, status=503)
    assert list(read_documents(f"s3://bucket/{name}")) == list(read_documents(path))
