"""Documents out of the files of a corpus.

A document is one line of a ``.jsonl`` (or ``.json``) file, one row of a ``.parquet`` file, or one whole ``.txt`` file;
all but parquet may be compressed (``.gz``, ``.zst``). Files are read as streams, a document at a time.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import pyarrow
import pyarrow.parquet

from llmshearing import storage
from llmshearing.data_prep.corpus import COMPRESSIONS, SourceFile, file_format
from llmshearing.errors import InputError

#: Where the text of a document is looked for when the user names no key, in this order.
TEXT_KEYS = ("text", "content", "raw_content", "body", "document")
#: Bytes that are read at a time; an object store answers each such request with a delay.
BUFFER = 1 << 20
REMOTE_BUFFER = 1 << 23


@dataclass(frozen=True)
class Document:
    """A text and the line (of a text file) or row (of a parquet file) it stands in, counted from 1."""

    line: int
    text: str


@dataclass(frozen=True)
class BadLine:
    """A line or row that holds no readable document, and why."""

    line: int
    reason: str


@dataclass(frozen=True)
class EmptyDocument:
    """A line, row or file whose text is the empty string: readable, but nothing to train on."""

    line: int


@dataclass(frozen=True)
class BlankLine:
    """A line with nothing in it, which only counts."""

    line: int


#: What a line, a row or a text file can turn out to be.
Item = Document | BadLine | EmptyDocument | BlankLine


def read_documents(
    path: Path | str, *, text_key: str | None = None, start: int = 0, stop: int | None = None
) -> Iterator[Item]:
    """Stream the documents of one file, or of a part of one.

    Args:
        path: a file that :func:`data_prep.corpus.file_format` knows.
        text_key: key (column) of the text; default: the first of ``TEXT_KEYS`` that a line (a file) has.
        start, stop: the part; see :class:`data_prep.corpus.SourceFile`.

    Yields:
        what each line or row is, in the file's order; their numbers begin with 1 in each part.

    Raises:
        InputError: the file as a whole cannot be read.
    """
    keys = (text_key,) if text_key else TEXT_KEYS
    try:
        match file_format(path):
            case ".parquet":
                yield from _read_parquet(path, keys, None if stop is None else range(start, stop))
            case ".txt":
                yield from _read_text(path)
            case _:
                yield from _read_jsonl(path, keys, start, stop)
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"'{path}' cannot be read: {error}. It may be truncated: fetch it again.") from error


def check_beginning(file: SourceFile, *, text_key: str | None, lines: int = 100) -> None:
    """Look at the first lines of a file, so that a wrong key or format shows before hours of work.

    Raises:
        InputError: there are that many lines and none of them is readable.
    """
    items = read_documents(file.path, text_key=text_key)
    beginning = list(itertools.islice((item for item in items if not isinstance(item, BlankLine)), lines))
    if len(beginning) == lines and all(isinstance(document, BadLine) for document in beginning):
        first = cast(BadLine, beginning[0])
        raise InputError(f"No line can be read: {file.path}:{first.line}: {first.reason}. See --text-key.")


@contextmanager
def _open(path: Path | str) -> Iterator[IO[bytes]]:
    """Open a file for reading bytes, through its compression."""
    compression = COMPRESSIONS.get(Path(path).suffix)
    with storage.open_input(path) as file:
        source: Any = file
        if compression is not None:
            if file.size() == 0:  # not even a header; Arrow would take it for the end
                raise OSError("it is empty")
            # Arrow's streams read every frame and refuse a truncated one; zstandard's reader takes it for the end.
            source = pyarrow.CompressedInputStream(file, compression)
        yield io.BufferedReader(source, buffer_size=REMOTE_BUFFER if storage.is_remote(path) else BUFFER)


def _document(line: int, text: object) -> Item:
    if not isinstance(text, str):
        return BadLine(line, f"the text is {type(text).__name__}, not a string")
    if not text:
        return EmptyDocument(line)
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can spell lone surrogates ("\ud800"), which are no characters
        return BadLine(line, "the text has a lone surrogate, which is not valid Unicode")
    return Document(line, text)


def _lines(stream: IO[bytes], start: int, stop: int | None) -> Iterator[bytes]:
    """The lines that begin at the bytes from ``start`` to ``stop``."""
    position = start
    if start > 0:  # a line that begins here has a line break in front of it
        stream.seek(start - 1)
        position += len(stream.readline()) - 1
    for line in stream:
        if stop is not None and position >= stop:
            return
        position += len(line)
        yield line


def _read_jsonl(path: Path | str, keys: tuple[str, ...], start: int, stop: int | None) -> Iterator[Item]:
    with _open(path) as stream:
        for number, raw in enumerate(_lines(stream, start, stop), start=1):
            if not raw.strip():
                yield BlankLine(number)
                continue
            try:
                # utf-8-sig: editors put a byte order mark in front of the first line
                record = json.loads(raw.decode("utf-8-sig"))
            except UnicodeDecodeError as error:
                yield BadLine(number, f"not UTF-8: {error.reason} at byte {error.start}")
                continue
            except (ValueError, RecursionError) as error:  # also of an integer with too many digits
                yield BadLine(number, f"not JSON: {error}")
                continue
            if not isinstance(record, dict):
                yield BadLine(number, f"a JSON {type(record).__name__}, not an object")
                continue
            key = next((key for key in keys if key in record), None)
            if key is None:
                yield BadLine(number, f"none of the keys {', '.join(keys)} among {', '.join(sorted(record)[:8])}")
                continue
            yield _document(number, record[key])


def _read_parquet(path: Path | str, keys: tuple[str, ...], groups: range | None) -> Iterator[Item]:
    with storage.open_input(path) as source, pyarrow.parquet.ParquetFile(source) as parquet:
        columns = parquet.schema_arrow.names
        key = next((key for key in keys if key in columns), None)
        if key is None:
            raise InputError(
                f"'{path}' has none of the columns {', '.join(keys)}, only {', '.join(columns)}. "
                "Name the column of the text with --text-key."
            )
        number = 0
        for batch in parquet.iter_batches(batch_size=256, row_groups=groups, columns=[key]):
            for text in batch.column(0):
                number += 1
                try:
                    item = _document(number, text.as_py())
                except ValueError as error:  # a column of strings may hold any bytes
                    item = BadLine(number, f"no text: {error}")
                yield item


def _read_text(path: Path | str) -> Iterator[Item]:
    with _open(path) as file:
        try:
            yield _document(1, file.read().decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            yield BadLine(1, f"not UTF-8: {error.reason} at byte {error.start}")
