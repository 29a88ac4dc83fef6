"""The output folder: begun and continued with one set of settings, by one process at a time, complete or not at all.

While a run is under way everything is in ``OUT/.partial``. Then ``train`` and ``eval`` move to ``OUT`` and
``manifest.json`` is written last.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmshearing.errors import InputError
from llmshearing.fileio import read_json, write_json

SPLITS = ("train", "eval")
#: The settings that tokenized files depend on.
TOKENIZING = ("format", "tokenizer", "token_type", "text_key")


def complete_manifest(out: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a complete ``out``, or None where there is none.

    Raises:
        InputError: it was made with other settings, or from another input.
    """
    if not (out / "manifest.json").exists():
        return None
    manifest = read_json(out / "manifest.json")
    _check_same(settings, manifest, out)
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
            _check_same({key: settings[key] for key in TOKENIZING}, earlier, out)
            if earlier != settings:
                discard_packed(work)
        elif any((out / split).exists() for split in SPLITS):
            raise InputError(f"'{out}' holds data of something else: it has no manifest.json. Choose another OUT.")
        write_json(work / "settings.json", settings)
        yield work


def discard_packed(work: Path) -> None:
    """Undo what was packed, at once: half of it must not be taken for finished."""
    if (work / "packed").exists():
        shutil.rmtree(work / "stale", ignore_errors=True)
        os.replace(work / "packed", work / "stale")


def publish(out: Path, work: Path, *, bad_lines: Iterable[Path], manifest: dict[str, Any]) -> None:
    """Move ``work/packed/{train,eval}`` into place, write the manifest, remove ``work``.

    Any of these steps may have been done by a run that was killed here.
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
    write_json(out / "manifest.json", manifest)
    shutil.rmtree(work)


def _check_same(settings: dict[str, Any], earlier: dict[str, Any], out: Path) -> None:
    # A tokenizer is its files; what path it was given by may differ.
    earlier = {**earlier, "tokenizer": {**earlier.get("tokenizer", {}), "name": settings["tokenizer"]["name"]}}
    for key, value in settings.items():
        if earlier.get(key) != value:
            raise InputError(
                f"'{out}' was begun with another '{key}': {earlier.get(key)}, now {value}. "
                "Choose another OUT, or remove that one."
            )
