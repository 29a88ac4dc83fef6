"""The output folder: begun and continued with one set of settings, by one process at a time, complete or not at all.

While a run is under way everything is in ``OUT/.partial``. Then ``train`` and ``eval`` move to ``OUT``, ``input.json``
records every input file (size, time, SHA-256), and ``manifest.json`` is written last.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmshearing.data_prep.readers import SourceFile
from llmshearing.data_prep.tokenize_file import UNFINISHED, file_sha256
from llmshearing.errors import InputError
from llmshearing.fileio import read_json, write_json

SPLITS = ("train", "eval")
#: The settings that tokenized files depend on.
TOKENIZING = ("format", "tokenizer", "token_type", "text_key")

Domains = Mapping[str, Sequence[SourceFile]]


def complete_manifest(out: Path, settings: dict[str, Any], domains: Domains) -> dict[str, Any] | None:
    """The manifest of a complete ``out``, or None where there is none.

    Raises:
        InputError: it was made with other settings, or from another input.
    """
    if not (out / "manifest.json").exists():
        return None
    manifest = read_json(out / "manifest.json")
    _check_same({key: value for key, value in settings.items() if key != "input"}, manifest, out / "manifest.json")
    try:
        _check_same_input(read_json(out / "input.json"), domains, out)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"'{out / 'input.json'}' was not written by data_prep/prepare.py. Choose another OUT, or remove that one."
        ) from error
    shutil.rmtree(out / ".partial", ignore_errors=True)  # of a run that was killed right after its manifest
    return manifest


@contextmanager
def work_folder(out: Path, settings: dict[str, Any]) -> Iterator[Path]:
    """Begin or continue ``out/.partial``; the claim on it ends with the process, however that ends.

    Tokenized files stay valid when only the packing changes, so an unfinished run may go on with, say, fewer eval
    sequences: what it had packed is packed anew.

    Raises:
        InputError: another process holds it, its files were tokenized in another way, or ``out`` holds other data.
    """
    work = out / ".partial"
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = (work / "lock").open("w")
    except OSError as error:
        raise InputError(f"Cannot write '{out}': {error.strerror}.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"Another run is preparing '{out}'. Wait for it, or choose another OUT.") from error
        if (work / "settings.json").exists():
            earlier = read_json(work / "settings.json")
            _check_same({key: settings[key] for key in TOKENIZING}, earlier, work / "settings.json")
            if earlier != settings:
                discard_packed(work)
        elif any((out / split).exists() for split in SPLITS):
            raise InputError(f"'{out}' holds data of something else: it has no manifest.json. Choose another OUT.")
        shutil.rmtree(work / UNFINISHED, ignore_errors=True)  # of workers that were killed
        write_json(work / "settings.json", settings)
        yield work


def discard_packed(work: Path) -> None:
    """Undo what was packed, at once: half of it must not be taken for finished."""
    if (work / "packed").exists():
        shutil.rmtree(work / "stale", ignore_errors=True)
        os.replace(work / "packed", work / "stale")
        shutil.rmtree(work / "stale")


def publish(
    out: Path, work: Path, *, bad_lines: Iterable[Path], files: dict[str, dict[str, Any]], manifest: dict[str, Any]
) -> None:
    """Move ``work/packed/{train,eval}`` into place, write what is recorded of the input, the manifest; remove ``work``.

    Any of these steps may have been done by a run that was killed here.

    Args:
        out: the output folder.
        work: what :func:`work_folder` gave.
        bad_lines: reports of bad lines, which become one.
        files: by domain and name, ``bytes``, ``mtime_ns`` and ``sha256`` of each input file.
        manifest: goes to ``manifest.json``.
    """
    for split in SPLITS:
        if (work / "packed" / split).exists():
            shutil.rmtree(out / split, ignore_errors=True)  # moved there by a run that went on with another packing
            os.replace(work / "packed" / split, out / split)
    (out / "bad_lines.jsonl").unlink(missing_ok=True)
    with (work / "bad_lines.jsonl").open("wb") as report:
        for path in bad_lines:
            with path.open("rb") as file:
                shutil.copyfileobj(file, report)
        report.flush()
        os.fsync(report.fileno())
    if (work / "bad_lines.jsonl").stat().st_size:
        os.replace(work / "bad_lines.jsonl", out / "bad_lines.jsonl")
    write_json(out / "input.json", files)
    write_json(out / "manifest.json", manifest)
    shutil.rmtree(work)


def _check_same(settings: dict[str, Any], earlier: Any, path: Path) -> None:
    if not isinstance(earlier, dict) or not isinstance(earlier.get("tokenizer", {}), dict):
        raise InputError(f"'{path}' was not written by data_prep/prepare.py. Choose another OUT, or remove that file.")
    # A tokenizer is its files; what path it was given by may differ.
    earlier = {**earlier, "tokenizer": {**earlier.get("tokenizer", {}), "name": settings["tokenizer"]["name"]}}
    for key, value in settings.items():
        if earlier.get(key) != value:
            raise InputError(
                f"'{path}' says that it was begun with another '{key}': {earlier.get(key)}, now {value}. "
                "Choose another OUT, or remove that one."
            )


def _check_same_input(recorded: dict[str, dict[str, Any]], domains: Domains, out: Path) -> None:
    """Compare the input with what ``out`` was made from; the content of a file is read where its time has changed.

    Raises:
        InputError: a file is new, gone or of another content.
    """
    before = {(domain, name): record for domain, files in recorded.items() for name, record in files.items()}
    now = {(file.domain, file.name): file.path for files in domains.values() for file in files}
    for key in sorted(before.keys() | now.keys()):
        if key not in before:
            change = "is new"
        elif key not in now:
            change = "is gone"
        elif not _is_same_file(now[key], before[key]):
            change = "has changed"
        else:
            continue
        raise InputError(
            f"'{out}' was made from another input: the file '{'/'.join(key)}' {change}. "
            "Choose another OUT, or remove that one."
        )


def _is_same_file(path: Path, record: dict[str, Any]) -> bool:
    stat = path.stat()
    if stat.st_size != record["bytes"]:
        return False
    return stat.st_mtime_ns == record["mtime_ns"] or file_sha256(path) == record["sha256"]
