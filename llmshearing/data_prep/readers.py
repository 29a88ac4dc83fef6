"""Documents out of the files of a corpus folder ``INPUT/<domain>/...``.

A document is one line of a ``.jsonl`` (or ``.json``) file, one row of a ``.parquet`` file, or one whole ``.txt`` file;
all but parquet may be compressed (``.gz``, ``.zst``). Files are read as streams, a document at a time.
"""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import pyarrow
import pyarrow.parquet

from llmshearing.errors import InputError

log = logging.getLogger(__name__)

#: Where the text of a document is looked for when the user names no key, in this order.
TEXT_KEYS = ("text", "content", "raw_content", "body", "document")
FORMATS = (".jsonl", ".json", ".parquet", ".txt")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


@dataclass(frozen=True)
class SourceFile:
    """One file of a domain.

    Attributes:
        domain: name of the domain, the folder right under the corpus.
        name: path relative to the domain's folder, with forward slashes.
        path: where the file is.
    """

    domain: str
    name: str
    path: Path


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


#: What a line, a row or a text file can turn out to be.
Item = Document | BadLine | EmptyDocument


def file_format(path: Path) -> str | None:
    """The one of ``FORMATS`` that a file name stands for, or None."""
    compressed = path.suffix in COMPRESSIONS
    suffix = path.with_suffix("").suffix if compressed else path.suffix
    return suffix if suffix in FORMATS and not (compressed and suffix == ".parquet") else None


def find_corpus(corpus: Path) -> dict[str, tuple[SourceFile, ...]]:
    """The readable files of every domain of ``corpus``, both in order of their names; hidden files are left out.

    Links are followed, to files and to folders.

    Raises:
        InputError: there is no such folder, no domain in it, a domain without a readable file, a .jsonl or .parquet
            file outside any domain, a link that leads nowhere or back to a folder it lies in, or a name that is not
            UTF-8.
    """
    if not corpus.is_dir():
        raise InputError(f"There is no folder '{corpus}'. Give a folder with one folder of documents per domain.")
    # A README.txt or a provenance.json may lie beside the domains, but not these.
    documents = (".jsonl", ".parquet")
    stray = sorted(path.name for path in corpus.iterdir() if path.is_file() and file_format(path) in documents)
    if stray:
        raise InputError(f"'{corpus / stray[0]}' belongs to no domain. Move it into a folder: {corpus}/<domain>/.")
    domains = {}
    for folder in sorted(path for path in corpus.iterdir() if not path.name.startswith(".") and _is_folder(path)):
        files = []
        for path in _walk(folder):
            if not path.is_file():
                log.warning("%s is left out: it is no regular file.", path)
            elif file_format(path):
                files.append(SourceFile(folder.name, path.relative_to(folder).as_posix(), path))
            else:
                log.warning("%s is left out: its name ends in none of %s (.gz, .zst).", path, ", ".join(FORMATS))
        if not files:
            raise InputError(f"Domain folder '{folder}' has no file of a known format ({', '.join(FORMATS)}).")
        domains[folder.name] = tuple(sorted(files, key=lambda file: file.name))
    if not domains:
        raise InputError(f"'{corpus}' has no domain folders. Put the documents into {corpus}/<domain>/.")
    return domains


def _walk(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Everything below ``folder`` that is not a folder, without what is hidden."""
    real = folder.resolve()
    if real in above:
        raise InputError(f"'{folder}' is a link to a folder that it lies in, '{real}'. Remove the link.")
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        if _is_folder(path):
            yield from _walk(path, (*above, real))
        else:
            yield path


def _is_folder(path: Path) -> bool:
    try:
        path.name.encode()
    except UnicodeEncodeError:
        raise InputError(f"The file name {str(path)!a} is not UTF-8. Rename it.") from None
    if path.is_symlink() and not path.exists():
        raise InputError(f"'{path}' is a link to '{os.readlink(path)}', which does not exist. Restore or remove it.")
    return path.is_dir()


def read_documents(path: Path, *, text_key: str | None = None) -> Iterator[Item]:
    """Stream the documents of one file.

    Args:
        path: a file that :func:`file_format` knows.
        text_key: key (column) of the text; default: the first of ``TEXT_KEYS`` that a line (a file) has.

    Yields:
        a ``Document``, a ``BadLine`` or an ``EmptyDocument`` for each line that is not blank, in the file's order.

    Raises:
        InputError: the file as a whole cannot be read.
    """
    keys = (text_key,) if text_key else TEXT_KEYS
    try:
        match file_format(path):
            case ".parquet":
                yield from _read_parquet(path, keys)
            case ".txt":
                yield from _read_text(path)
            case _:
                yield from _read_jsonl(path, keys)
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"'{path}' cannot be read: {error}. It may be truncated: fetch it again.") from error


def check_beginning(file: SourceFile, *, text_key: str | None, lines: int = 100) -> None:
    """Look at the first lines of a file, so that a wrong key or format shows before hours of work.

    Raises:
        InputError: there are that many lines and none of them is readable.
    """
    beginning = list(itertools.islice(read_documents(file.path, text_key=text_key), lines))
    if len(beginning) == lines and all(isinstance(document, BadLine) for document in beginning):
        first = cast(BadLine, beginning[0])
        raise InputError(f"No line can be read: {file.path}:{first.line}: {first.reason}. See --text-key.")


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading bytes, through its compression."""
    compression = COMPRESSIONS.get(path.suffix)
    if compression is None:
        with path.open("rb") as file:
            yield file
    elif path.stat().st_size == 0:  # not even a header; Arrow would take it for the end
        raise OSError("it is empty")
    else:
        # Arrow's streams read every frame and refuse a truncated one; zstandard's reader takes it for the end.
        with pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), compression) as stream:
            yield io.BufferedReader(stream, buffer_size=1 << 20)


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


def _read_jsonl(path: Path, keys: tuple[str, ...]) -> Iterator[Item]:
    with _open(path) as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
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


def _read_parquet(path: Path, keys: tuple[str, ...]) -> Iterator[Item]:
    with pyarrow.parquet.ParquetFile(path) as file:
        columns = file.schema_arrow.names
        key = next((key for key in keys if key in columns), None)
        if key is None:
            raise InputError(
                f"'{path}' has none of the columns {', '.join(keys)}, only {', '.join(columns)}. "
                "Name the column of the text with --text-key."
            )
        number = 0
        for batch in file.iter_batches(batch_size=256, columns=[key]):
            for text in batch.column(0):
                number += 1
                try:
                    item = _document(number, text.as_py())
                except ValueError as error:  # a column of strings may hold any bytes
                    item = BadLine(number, f"no text: {error}")
                yield item


def _read_text(path: Path) -> Iterator[Item]:
    with _open(path) as file:
        try:
            yield _document(1, file.read().decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            yield BadLine(1, f"not UTF-8: {error.reason} at byte {error.start}")
