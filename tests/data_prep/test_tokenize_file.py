"""The first pass over one file."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_prep.readers import SourceFile
from data_prep.tokenize_file import finished_part, read_index, read_tokens, text_hash, tokenize_file
from data_prep.tokenizer import Tokenizer

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
    documents = list(read_tokens(tmp_path / "work", file, "uint16"))
    assert [text for text, _ in documents] == [text_hash(text) for text in everything]
    assert [tokens.tolist() for _, tokens in documents] == encoded
    pieces = list(read_index(tmp_path / "work", file, records=100))
    assert [len(piece) for piece in pieces] == [100] * 10 + [6]
    assert np.concatenate(pieces)["tokens"].tolist() == [len(ids) for ids in encoded]


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
        for _ in read_tokens(tmp_path / "work", file, "uint16"):
            pass
        peaks[copies] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert file.path.stat().st_size > copies * 100_000
        assert (part := finished_part(tmp_path / "work", file)) is not None
        assert part.bad_lines == 3000 * copies
    assert peaks[9] < 1.3 * peaks[3], peaks
