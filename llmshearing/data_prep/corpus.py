"""The files of a corpus folder ``INPUT/<domain>/...``, a path or an address."""

from __future__ import annotations

import itertools
import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow
import pyarrow.parquet

from llmshearing import storage
from llmshearing.errors import InputError
from llmshearing.storage import Info

log = logging.getLogger(__name__)

FORMATS = (".jsonl", ".json", ".parquet", ".txt")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
#: Formats that can stand in no other place than a domain's folder.
DOCUMENTS = (".jsonl", ".parquet")


@dataclass(frozen=True)
class SourceFile:
    """One file of a domain, or a part of one.

    Attributes:
        domain: name of the domain, the folder right under the corpus.
        name: path relative to the domain's folder, with forward slashes.
        path: where the file is.
        start, stop: which part: the lines that begin at these bytes, or these row groups of a parquet file; ``stop``
            is None for the whole file.
    """

    domain: str
    name: str
    path: Path | str
    start: int = 0
    stop: int | None = None

    @property
    def key(self) -> str:
        """Domain, name and part, as a relative path that no other part has."""
        # No file has such a name: what follows a format is no format, and such files are left out.
        return f"{self.domain}/{self.name}" + ("" if self.stop is None else f".{self.start}-{self.stop}")


Domains = Mapping[str, Sequence[SourceFile]]


def file_format(path: str | os.PathLike[str]) -> str | None:
    """The one of ``FORMATS`` that a file name stands for, or None."""
    path = Path(path)
    compressed = path.suffix in COMPRESSIONS
    suffix = path.with_suffix("").suffix if compressed else path.suffix
    return suffix if suffix in FORMATS and not (compressed and suffix == ".parquet") else None


def find_corpus(corpus: Path | str) -> dict[str, tuple[SourceFile, ...]]:
    """The readable files of every domain of ``corpus``, both in order of their names; hidden files are left out.

    Links are followed, to files and to folders.

    Raises:
        InputError: there is no such folder, no domain in it, a domain without a readable file, a .jsonl or .parquet
            file outside any domain, a link that leads nowhere or back to a folder it lies in, or a name that is not
            UTF-8.
    """
    found = _of_address(str(corpus)) if storage.is_remote(corpus) else _of_folder(Path(corpus))
    domains = {}
    for domain, files in found.items():
        readable = []
        for file in files:
            if file_format(file.path):
                readable.append(file)
            else:
                log.warning("%s is left out: its name ends in none of %s (.gz, .zst).", file.path, ", ".join(FORMATS))
        if not readable:
            raise InputError(
                f"Domain folder '{storage.join(corpus, domain)}' has no file of a known format ({', '.join(FORMATS)})."
            )
        domains[domain] = tuple(sorted(readable, key=lambda file: file.name))
    if not domains:
        raise InputError(f"'{corpus}' has no domain folders. Put the documents into {corpus}/<domain>/.")
    return domains


def file_infos(corpus: Path | str, domains: Domains) -> dict[SourceFile, Info]:
    """Size and time of every file.

    Raises:
        InputError: one is gone.
    """
    listed = storage.files_below(corpus) if storage.is_remote(corpus) else None
    infos = {}
    for file in (file for files in domains.values() for file in files):
        info = storage.info(file.path) if listed is None else listed.get(file.key)
        if info is None:
            raise InputError(f"'{file.path}' is gone. Run the command again.")
        infos[file] = info
    return infos


def split_file(file: SourceFile, size: int, *, part_bytes: int) -> list[SourceFile]:
    """The parts of a file, of about ``part_bytes`` each: all of them have its documents, in order and each once.

    Lines of plain text and row groups of parquet can be read from the middle; other files are one part.

    Raises:
        InputError: the file cannot be read.
    """
    plain = Path(file.path).suffix not in COMPRESSIONS
    if size <= part_bytes or not plain or file_format(file.path) == ".txt":
        return [file]
    if file_format(file.path) != ".parquet":
        return [replace(file, start=start, stop=start + part_bytes) for start in range(0, size, part_bytes)]
    try:
        with storage.open_input(file.path) as source, pyarrow.parquet.ParquetFile(source) as parquet:
            groups = [parquet.metadata.row_group(number) for number in range(parquet.metadata.num_row_groups)]
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"'{file.path}' cannot be read: {error}. It may be truncated: fetch it again.") from error
    sizes = [sum(group.column(at).total_compressed_size for at in range(group.num_columns)) for group in groups]
    bounds, held = [0], 0
    for number, group_bytes in enumerate(sizes, start=1):
        held += group_bytes
        if held >= part_bytes or number == len(sizes):
            bounds.append(number)
            held = 0
    return [replace(file, start=start, stop=stop) for start, stop in itertools.pairwise(bounds)] or [file]


def _check_no_stray(corpus: Path | str, names: Sequence[str]) -> None:
    # A README.txt or a provenance.json may lie beside the domains, but not these.
    stray = sorted(name for name in names if file_format(name) in DOCUMENTS)
    if stray:
        where = storage.join(corpus, stray[0])
        raise InputError(f"'{where}' belongs to no domain. Move it into a folder: {corpus}/<domain>/.")


def _of_address(corpus: str) -> dict[str, list[SourceFile]]:
    names = [name for name in storage.files_below(corpus) if not any(s.startswith(".") for s in name.split("/"))]
    if not names:
        raise InputError(f"There is nothing at '{corpus}'. Give a folder with one folder of documents per domain.")
    _check_no_stray(corpus, [name for name in names if "/" not in name])
    found = defaultdict(list)
    for domain, slash, name in (name.partition("/") for name in names):
        if slash:
            found[domain].append(SourceFile(domain, name, storage.join(corpus, domain, name)))
    return {domain: found[domain] for domain in sorted(found)}


def _of_folder(corpus: Path) -> dict[str, list[SourceFile]]:
    if not corpus.is_dir():
        raise InputError(f"There is no folder '{corpus}'. Give a folder with one folder of documents per domain.")
    _check_no_stray(corpus, [path.name for path in corpus.iterdir() if path.is_file()])
    found: dict[str, list[SourceFile]] = {}
    for folder in sorted(path for path in corpus.iterdir() if not path.name.startswith(".") and _is_folder(path)):
        found[folder.name] = []
        for path in _walk(folder):
            if path.is_file():
                found[folder.name].append(SourceFile(folder.name, path.relative_to(folder).as_posix(), path))
            else:
                log.warning("%s is left out: it is no regular file.", path)
    return found


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
