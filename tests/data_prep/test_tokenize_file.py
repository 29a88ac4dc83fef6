"""The first pass over one file."""

from __future__ import annotations

import errno
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from llmshearing.data_prep.corpus import SourceFile
from llmshearing.data_prep.tokenize_file import finished_part, read_index, text_hash, tokenize_file
from llmshearing.data_prep.tokenizer import Tokenizer
from llmshearing.data_prep.work import part_path, read_array

WriteJsonl = Callable[..., Path]


def run(file: SourceFile, work: Path, tokenizer: Tokenizer) -> int:
    return sum(tokenize_file(file, tokenizer.encoder, work=work, token_type="uint16", text_key=None))


def test_documents_come_back_with_their_hashes_and_tokens(
    tmp_path: Path, tokenizer: Tokenizer, texts: list[str], unicode_texts: list[str], write_jsonl: WriteJsonl
) -> None:
    everything = texts + unicode_texts
    file = SourceFile("code", "part/a.jsonl", write_jsonl(tmp_path / "a.jsonl", everything))
    assert finished_part(tmp_path / "work", file) is None
    total = run(file, tmp_path / "work", tokenizer)
    encoded = tokenizer.encoder.encode(everything)
    part = finished_part(tmp_path / "work", file)
    assert part is not None
    assert (part.documents, part.tokens, part.bad_lines) == (len(everything), total, 0)
    tokens = read_array(part_path(tmp_path / "work", file, ".tokens"), "uint16")
    assert tokens.tolist() == [token for ids in encoded for token in ids]
    pieces = list(read_index(tmp_path / "work", file, records=100))
    assert [len(piece) for piece in pieces] == [100] * 10 + [6]
    assert np.concatenate(pieces)["hash"].tolist() == [text_hash(text) for text in everything]
    assert np.concatenate(pieces)["tokens"].tolist() == [len(ids) for ids in encoded]


class Failing:
    """An encoder whose disk is full, say, at its third batch."""

    def __init__(self) -> None:
        self.calls = 0

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        self.calls += 1
        if self.calls == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return [[1] * len(text) for text in texts]


def test_what_fails_leaves_nothing_behind(tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    file = SourceFile("code", "a.jsonl", write_jsonl(tmp_path / "a.jsonl", ["x" * 5000] * 1000))
    for _ in range(3):
        with pytest.raises(OSError, match="No space left") as caught:
            sum(tokenize_file(file, Failing(), work=tmp_path / "work", token_type="uint16", text_key=None))
        assert caught.value.filename == str(tmp_path / "work")
        assert [path for path in (tmp_path / "work").rglob("*") if path.is_file()] == []


def test_documents_without_text_are_counted_apart(
    tmp_path: Path, tokenizer: Tokenizer, write_jsonl: WriteJsonl
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["", "text", "", "more"])
    with path.open("a") as lines:
        lines.write('{"\\ud800": 1}\n')  # a reason that cannot be written as it is
    file = SourceFile("code", "a.jsonl", path)
    run(file, tmp_path / "work", tokenizer)
    part = finished_part(tmp_path / "work", file)
    assert part is not None
    assert (part.documents, part.empty_documents, part.bad_lines) == (2, 2, 1)
    assert part.first_bad_line == 5
    assert part.first_bad_reason is not None
    assert part.first_bad_reason.endswith("among \\ud800")


def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, tokenizer: Tokenizer, texts: list[str], write_jsonl: WriteJsonl
) -> None:
    peaks = {}
    for copies in (3, 9):
        file = SourceFile("code", f"{copies}.jsonl", write_jsonl(tmp_path / f"{copies}.jsonl", texts * copies))
        with file.path.open("a") as lines:
            lines.write("broken\n" * 3000 * copies)
        tracemalloc.start()
        run(file, tmp_path / "work", tokenizer)
        assert sum(map(len, read_index(tmp_path / "work", file))) == len(texts) * copies
        peaks[copies] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert file.path.stat().st_size > copies * 100_000
        assert (part := finished_part(tmp_path / "work", file)) is not None
        assert part.bad_lines == 3000 * copies
    assert peaks[9] < 1.3 * peaks[3], peaks
