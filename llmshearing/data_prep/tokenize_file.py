"""First pass, one task per input file: its documents, tokenized, into two flat files that the second pass streams.

``<file>.tokens`` holds the ids of all documents without BOS and EOS, back to back; ``<file>.index`` a ``RECORD`` per
document; ``<file>.bad.jsonl`` the bad lines; ``<file>.json`` the counts. The last is written last and makes the file a
finished one: a restart takes it as it is while the input file has the same size and time. Until then all is in
``UNFINISHED``, which a restart empties.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from llmshearing.data_prep.readers import BadLine, Document, Item, SourceFile, read_documents
from llmshearing.data_prep.tokenizer import Encoder
from llmshearing.errors import naming
from llmshearing.fileio import read_json, write_json

#: One document of an index: hash of its text, and its number of tokens.
RECORD = np.dtype([("hash", "<u8"), ("tokens", "<u8")])
#: A batch for the tokenizer ends when it has this many characters or documents.
BATCH_CHARACTERS = 1 << 20
BATCH_DOCUMENTS = 1024
#: Folder of what workers have not finished.
UNFINISHED = "unfinished"
#: Characters of a bad line's reason that are reported: it may quote the line.
LONGEST_REASON = 500


def text_hash(text: str) -> int:
    """64-bit hash of a text's UTF-8 bytes."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class TokenizedFile:
    """What the first pass found in one input file.

    Attributes:
        bytes, mtime_ns, sha256: size, time and content of the input file when it was read.
        documents, tokens: documents, and their tokens without BOS and EOS.
        empty_documents: those without any text, which are not among ``documents``.
        bad_lines: lines that held no readable document.
        first_bad_line: the first of them, as ``file:line: reason``.
    """

    bytes: int
    mtime_ns: int
    sha256: str
    documents: int
    tokens: int
    empty_documents: int
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


class Sieve:
    """Lets the documents of one file through, counts the rest and writes bad lines to ``report``, many as they may be.

    Attributes:
        empty: how many documents had no text.
        bad: how many lines were bad.
        first_bad: the first of them, as ``file:line: reason``.
    """

    def __init__(self, file: SourceFile, report: IO[bytes]) -> None:
        self.empty = self.bad = 0
        self.first_bad: str | None = None
        self._file, self._report = file, report

    def documents(self, items: Iterable[Item]) -> Iterator[Document]:
        """The readable documents."""
        for item in items:
            if isinstance(item, Document):
                yield item
            elif isinstance(item, BadLine):
                reason = _printable(item.reason[:LONGEST_REASON])
                self.bad += 1
                self.first_bad = self.first_bad or f"{_printable(str(self._file.path))}:{item.line}: {reason}"
                line = {"file": f"{self._file.domain}/{self._file.name}", "line": item.line, "reason": reason}
                self._report.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            else:
                self.empty += 1


def _printable(text: str) -> str:
    """With lone surrogates, which a key of JSON or a path may have, spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tokenize_file(
    file: SourceFile, encoder: Encoder, *, work: Path, token_type: str, text_key: str | None
) -> Iterator[int]:
    """Tokenize one input file into ``work``; yields the number of tokens of each batch as it is written.

    Raises:
        InputError: the file cannot be read.
    """
    stat = file.path.stat()
    sha256 = file_sha256(file.path)
    documents = tokens = 0
    (work / UNFINISHED).mkdir(parents=True, exist_ok=True)
    # A name of its own: a killed run's last worker may still be writing when the next run starts.
    name = uuid.uuid4().hex
    temporary = {ending: work / UNFINISHED / f"{name}{ending}" for ending in (".tokens", ".index", ".bad.jsonl")}
    try:
        with (
            naming(work),
            temporary[".tokens"].open("wb") as token_file,
            temporary[".index"].open("wb") as index_file,
            temporary[".bad.jsonl"].open("wb") as report,
        ):
            sieve = Sieve(file, report)
            for batch in _batches(sieve.documents(read_documents(file.path, text_key=text_key))):
                count = _write_batch(encoder, batch, token_type, token_file, index_file)
                documents += len(batch)
                tokens += count
                yield count
            for written in (token_file, index_file, report):  # before the record that declares them finished
                written.flush()
                os.fsync(written.fileno())
        part_path(work, file, "").parent.mkdir(parents=True, exist_ok=True)
        for ending, path in temporary.items():
            os.replace(path, part_path(work, file, ending))
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
    part = TokenizedFile(
        bytes=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
        sha256=sha256,
        documents=documents,
        tokens=tokens,
        empty_documents=sieve.empty,
        bad_lines=sieve.bad,
        first_bad_line=sieve.first_bad,
    )
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
    # Not by ndarray.tofile, whose error does not say that the disk is full.
    token_file.write(np.fromiter(itertools.chain.from_iterable(encoded), token_type, total).data)
    index_file.write(records.data)
    return total
