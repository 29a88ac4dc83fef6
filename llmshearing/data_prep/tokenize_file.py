"""First pass, one task per part of an input file: its documents, tokenized, into two flat files for the second pass.

``<part>.tokens`` holds the ids of all documents without BOS and EOS, back to back; ``<part>.index`` a ``RECORD`` per
document; ``<part>.bad.jsonl`` the bad lines; ``<part>.json`` the counts. The last is written last and makes the part a
finished one: a restart takes it as it is while the input file has the same size and time.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import IO

import numpy as np
from numpy.typing import NDArray

from llmshearing import storage
from llmshearing.data_prep.corpus import SourceFile
from llmshearing.data_prep.readers import BadLine, BlankLine, Document, Item, read_documents
from llmshearing.data_prep.tokenizer import Encoder
from llmshearing.data_prep.work import new_files, part_path, read_elements
from llmshearing.errors import InputError
from llmshearing.fileio import read_json
from llmshearing.storage import Info, Place

#: One document of an index: hash of its text, and its number of tokens.
RECORD = np.dtype([("hash", "<u8"), ("tokens", "<u8")])
#: A batch for the tokenizer ends when it has this many characters or documents.
BATCH_CHARACTERS = 1 << 20
BATCH_DOCUMENTS = 1024
#: Characters of a bad line's reason that are reported: it may quote the line.
LONGEST_REASON = 500


def text_hash(text: str) -> int:
    """64-bit hash of a text's UTF-8 bytes."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class TokenizedFile:
    """What the first pass found in a part of an input file.

    Attributes:
        bytes, mtime_ns: size and time of the input file when it was read.
        sha256: its content, where the part is the whole file and it lies on a disk.
        lines: lines or rows of the part, those with nothing in them, too.
        documents, tokens: documents, and their tokens without BOS and EOS.
        empty_documents: those without any text, which are not among ``documents``.
        bad_lines: lines that held no readable document.
        first_bad_line, first_bad_reason: the first of them, counted from 1 in this part.
    """

    bytes: int
    mtime_ns: int
    sha256: str | None
    lines: int
    documents: int
    tokens: int
    empty_documents: int
    bad_lines: int
    first_bad_line: int | None
    first_bad_reason: str | None


def finished_part(work: Place, file: SourceFile, info: Info | None = None) -> TokenizedFile | None:
    """The record of a tokenized part if there is one and the input file still has its size and time.

    Args:
        work: folder of the tokenized parts.
        file: the part.
        info: size and time of the input file; None: as they are now.
    """
    place = part_path(work, file, ".json")
    if storage.info(place) is None:
        return None
    part = TokenizedFile(**read_json(place))
    return part if Info(part.bytes, part.mtime_ns) == (info or storage.info(file.path)) else None


class Sieve:
    """Lets the documents of one part through, counts the rest and writes bad lines to ``report``, many as they may be.

    Attributes:
        lines: how many lines there were.
        empty: how many documents had no text.
        bad: how many lines were bad.
        first_bad: line and reason of the first of them.
    """

    def __init__(self, file: SourceFile, report: IO[bytes]) -> None:
        self.lines = self.empty = self.bad = 0
        self.first_bad: tuple[int, str] | None = None
        self._file, self._report = file, report

    def documents(self, items: Iterable[Item]) -> Iterator[Document]:
        """The readable documents."""
        for item in items:
            self.lines += 1
            if isinstance(item, Document):
                yield item
            elif isinstance(item, BadLine):
                reason = printable(item.reason[:LONGEST_REASON])
                self.bad += 1
                self.first_bad = self.first_bad or (item.line, reason)
                line = {"file": f"{self._file.domain}/{self._file.name}", "line": item.line, "reason": reason}
                self._report.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            elif not isinstance(item, BlankLine):
                self.empty += 1


def printable(text: str) -> str:
    """With lone surrogates, which a key of JSON or a path may have, spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()


def file_sha256(path: Place) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with storage.open_input(path) as file, storage.reporting(path):
        while piece := file.read(1 << 18):
            digest.update(piece)
    return digest.hexdigest()


def tokenize_file(
    file: SourceFile, encoder: Encoder, *, work: Place, token_type: str, text_key: str | None
) -> Iterator[int]:
    """Tokenize a part of an input file into ``work``; yields the number of tokens of each batch as it is written.

    Raises:
        InputError: the file cannot be read.
    """
    info = storage.info(file.path)
    if info is None:
        raise InputError(f"There is no file '{file.path}'.")
    sha256 = file_sha256(file.path) if file.stop is None and not storage.is_remote(file.path) else None
    documents = tokens = 0
    places = [part_path(work, file, ending) for ending in (".tokens", ".index", ".bad.jsonl")]
    with new_files(work, places) as (token_file, index_file, report):
        sieve = Sieve(file, report)
        items = read_documents(file.path, text_key=text_key, start=file.start, stop=file.stop)
        for batch in _batches(sieve.documents(items)):
            count = _write_batch(encoder, batch, token_type, token_file, index_file)
            documents += len(batch)
            tokens += count
            yield count
    first_line, first_reason = sieve.first_bad or (None, None)
    part = TokenizedFile(
        bytes=info.bytes,
        mtime_ns=info.mtime_ns,
        sha256=sha256,
        lines=sieve.lines,
        documents=documents,
        tokens=tokens,
        empty_documents=sieve.empty,
        bad_lines=sieve.bad,
        first_bad_line=first_line,
        first_bad_reason=first_reason,
    )
    storage.write_json(part_path(work, file, ".json"), asdict(part))


def read_index(work: Place, file: SourceFile, *, records: int = 1 << 18) -> Iterator[NDArray[np.void]]:
    """The part's index in pieces."""
    place = part_path(work, file, ".index")
    with storage.open_input(place) as index:
        total = index.size() // RECORD.itemsize
        for start in range(0, total, records):
            yield read_elements(index, place, RECORD, start, min(records, total - start))


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
