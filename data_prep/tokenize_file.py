"""First pass, one task per input file: its documents, tokenized, into two flat files that the second pass streams.

``<file>.tokens`` holds the ids of all documents without BOS and EOS, back to back; ``<file>.index`` a ``RECORD`` per
document; ``<file>.bad.jsonl`` the bad lines; ``<file>.json`` the counts. The last is written last and makes the file a
finished one: a restart takes it as it is while the input file has the same size and time.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from data_prep.readers import BadLine, Document, SourceFile, read_documents
from data_prep.tokenizer import Encoder
from llmshearing.fileio import read_json, write_json

#: One document of an index: hash of its text, and its number of tokens.
RECORD = np.dtype([("hash", "<u8"), ("tokens", "<u8")])
#: A batch for the tokenizer ends when it has this many characters or documents.
BATCH_CHARACTERS = 1 << 20
BATCH_DOCUMENTS = 1024


def text_hash(text: str) -> int:
    """64-bit hash of a text's UTF-8 bytes."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class TokenizedFile:
    """What the first pass found in one input file.

    Attributes:
        bytes, mtime_ns: size and time of the input file when it was read.
        documents, tokens: documents, and their tokens without BOS and EOS.
        bad_lines: lines that held no readable document.
        first_bad_line: the first of them, as ``file:line: reason``.
    """

    bytes: int
    mtime_ns: int
    documents: int
    tokens: int
    bad_lines: int
    first_bad_line: str | None


def part_path(work: Path, file: SourceFile, ending: str) -> Path:
    """Where the first pass puts a file's ``.tokens``, ``.index``, ``.json`` or ``.bad.jsonl``."""
    return work / "tokenized" / file.domain / f"{file.name}{ending}"


def recorded_part(work: Path, file: SourceFile) -> TokenizedFile:
    """The record of a tokenized file."""
    return TokenizedFile(**read_json(part_path(work, file, ".json")))


def finished_part(work: Path, file: SourceFile) -> TokenizedFile | None:
    """The record of a tokenized file if there is one and the input file is still the same."""
    if not part_path(work, file, ".json").exists():
        return None
    part = recorded_part(work, file)
    stat = file.path.stat()
    return part if (part.bytes, part.mtime_ns) == (stat.st_size, stat.st_mtime_ns) else None


class BadLines:
    """The bad lines of one file, written to ``report`` as they come: there may be more than memory holds.

    Attributes:
        count: how many there were.
        first: the first of them, as ``file:line: reason``.
    """

    def __init__(self, file: SourceFile, report: IO[bytes]) -> None:
        self.count = 0
        self.first: str | None = None
        self._file, self._report = file, report

    def sift(self, documents: Iterable[Document | BadLine]) -> Iterator[Document]:
        """The readable documents; the others go to the report."""
        for document in documents:
            if isinstance(document, Document):
                yield document
                continue
            self.count += 1
            self.first = self.first or f"{self._file.path}:{document.line}: {document.reason}"
            name = f"{self._file.domain}/{self._file.name}"
            line = {"file": name, "line": document.line, "reason": document.reason}
            self._report.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")


def tokenize_file(
    file: SourceFile, encoder: Encoder, *, work: Path, token_type: str, text_key: str | None
) -> Iterator[int]:
    """Tokenize one input file into ``work``; yields the number of tokens of each batch as it is written.

    Raises:
        InputError: the file cannot be read.
    """
    stat = file.path.stat()
    part_path(work, file, "").parent.mkdir(parents=True, exist_ok=True)
    documents = tokens = 0
    # A name of its own for each process: a killed run's last worker may still be writing when the next run starts.
    endings = (".tokens", ".index", ".bad.jsonl")
    temporary = {ending: part_path(work, file, f"{ending}.{os.getpid()}") for ending in endings}
    with (
        temporary[".tokens"].open("wb") as token_file,
        temporary[".index"].open("wb") as index_file,
        temporary[".bad.jsonl"].open("wb") as report,
    ):
        bad_lines = BadLines(file, report)
        for batch in _batches(bad_lines.sift(read_documents(file.path, text_key=text_key))):
            count = _write_batch(encoder, batch, token_type, token_file, index_file)
            documents += len(batch)
            tokens += count
            yield count
        for written in (token_file, index_file, report):  # before the record that declares them finished
            written.flush()
            os.fsync(written.fileno())
    for ending, path in temporary.items():
        os.replace(path, part_path(work, file, ending))
    part = TokenizedFile(stat.st_size, stat.st_mtime_ns, documents, tokens, bad_lines.count, bad_lines.first)
    write_json(part_path(work, file, ".json"), asdict(part))


def read_index(work: Path, file: SourceFile, *, records: int = 1 << 18) -> Iterator[NDArray[np.void]]:
    """The file's index in pieces."""
    with part_path(work, file, ".index").open("rb") as index:
        while len(piece := np.fromfile(index, RECORD, records)):
            yield piece


def read_tokens(work: Path, file: SourceFile, token_type: str) -> Iterator[tuple[int, NDArray[np.integer]]]:
    """Hash and tokens of each document of a tokenized file."""
    size = np.dtype(token_type).itemsize
    with part_path(work, file, ".tokens").open("rb") as tokens:
        for piece in read_index(work, file):
            for text, length in zip(piece["hash"].tolist(), piece["tokens"].tolist(), strict=True):
                yield text, np.frombuffer(tokens.read(length * size), token_type)


def _batches(documents: Iterable[Document]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for document in documents:
        batch.append(document.text)
        characters += len(document.text)
        if characters >= BATCH_CHARACTERS or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _write_batch(
    encoder: Encoder, texts: list[str], token_type: str, token_file: IO[bytes], index_file: IO[bytes]
) -> int:
    encoded = encoder.encode(texts)
    records = np.empty(len(texts), RECORD)
    records["hash"] = [text_hash(text) for text in texts]
    records["tokens"] = [len(ids) for ids in encoded]
    total = int(records["tokens"].sum())
    np.fromiter(itertools.chain.from_iterable(encoded), token_type, total).tofile(token_file)
    records.tofile(index_file)
    return total
