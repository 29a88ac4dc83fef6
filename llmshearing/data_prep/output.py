"""The output folder: begun and continued with one set of settings, by one run at a time, complete or not at all.

While a run is under way everything is in ``OUT/.partial``. Then ``train`` and ``eval`` move to ``OUT``, ``input.json``
records every input file (size, time, and SHA-256 or the store's tag), and ``manifest.json`` is written last.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmshearing import storage
from llmshearing.data_prep.claim import claimed
from llmshearing.data_prep.corpus import Domains
from llmshearing.data_prep.tokenize_file import file_sha256
from llmshearing.data_prep.work import UNFINISHED, new_files, write_bytes
from llmshearing.errors import InputError
from llmshearing.fileio import json_text, read_json
from llmshearing.storage import Place, join

SPLITS = ("train", "eval")
#: The settings that tokenized files depend on.
TOKENIZING = ("format", "tokenizer", "token_type", "text_key")
#: Requests to a store that are under way at a time.
THREADS = 16


def complete_manifest(out: Place, settings: dict[str, Any], domains: Domains) -> dict[str, Any] | None:
    """The manifest of a complete ``out``, or None where there is none.

    Raises:
        InputError: it was made with other settings, or from another input.
    """
    place, record = join(out, "manifest.json"), join(out, "input.json")
    if not _is_there(place):
        return None
    manifest = read_json(place)
    # What has no entry where it was not asked for is compared, too.
    wanted = {"dedup": None, **{key: value for key, value in settings.items() if key != "input"}}
    _check_same(wanted, manifest, place)
    try:
        _check_same_input(read_json(record), domains, out)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"'{record}' was not written by data_prep/prepare.py. Choose another OUT, or remove that one."
        ) from error
    storage.remove(join(out, ".partial"))  # of a run that was killed right after its manifest
    return manifest


@contextmanager
def work_folder(out: Place, settings: dict[str, Any]) -> Iterator[tuple[str, str, Callable[[], None]]]:
    """Begin or continue ``out/.partial``; the claim on it ends with the process.

    Tokenized files stay valid when only the packing changes, so an unfinished run may go on with, say, fewer eval
    sequences: what it had packed is packed anew.

    Yields:
        the folder; the mark of this run, which its ``run.json`` holds; a function that raises where the claim is lost.

    Raises:
        InputError: another run holds it, its files were tokenized in another way, or ``out`` holds other data.
    """
    work = join(out, ".partial")
    with claimed(out, work) as check:
        place = join(work, "settings.json")
        if _is_there(place):
            _check_same({key: settings[key] for key in TOKENIZING}, read_json(place), place)
        elif any(_is_there(join(out, split)) for split in SPLITS):
            raise InputError(f"'{out}' holds data of something else: it has no manifest.json. Choose another OUT.")
        storage.remove(join(work, UNFINISHED))  # of workers that were killed
        run = uuid.uuid4().hex
        storage.write_json(place, settings)
        storage.write_json(join(work, "run.json"), run)
        yield work, run, check


def _is_there(place: str) -> bool:
    if storage.is_remote(place):
        return storage.info(place) is not None or bool(storage.files_below(place))
    return Path(place).exists()


def packing_folder(work: str, name: str) -> str:
    """The folder of one packing of one set of tokenized parts; what there is of others goes."""
    packings = join(work, "packed")
    if storage.is_remote(work):
        for other in {found.partition("/")[0] for found in storage.files_below(packings)} - {name}:
            storage.remove(join(packings, other))
    else:
        for path in Path(packings).glob("*"):
            if path.name != name:
                # At once: half of it must not be taken for finished.
                stale = Path(work) / UNFINISHED / uuid.uuid4().hex
                stale.parent.mkdir(exist_ok=True)
                os.replace(path, stale)
                shutil.rmtree(stale)
    return join(packings, name)


def publish(
    out: Place,
    work: str,
    packed: str,
    *,
    bad_lines: Iterable[tuple[str, int]],
    files: dict[str, dict[str, Any]],
    manifest: dict[str, Any],
) -> None:
    """Put ``packed/{train,eval}`` into place, write what is recorded of the input, the manifest; remove ``work``.

    Any of these steps may have been done by a run that was killed here.

    Args:
        out: the output folder.
        work: what :func:`work_folder` gave.
        packed: what :func:`packing_folder` gave.
        bad_lines: reports of the parts' bad lines, each with the number of lines before it in its file.
        files: what is recorded of each input file, by domain and name.
        manifest: goes to ``manifest.json``.
    """
    for split in SPLITS:
        if storage.is_remote(out):
            _copy_folder(join(packed, split), join(out, split))
        elif Path(packed, split).exists():
            shutil.rmtree(Path(out, split), ignore_errors=True)  # moved there by a run with another packing
            os.replace(Path(packed, split), Path(out, split))
    _write_bad_lines(work, join(out, "bad_lines.jsonl"), bad_lines)
    for name, value in (("input.json", files), ("manifest.json", manifest)):
        write_bytes(work, join(out, name), json_text(value).encode())
    storage.remove(work)


def _copy_folder(source: str, target: str) -> None:
    """Copy within a store, which need not send the data to anyone; remove what else is in ``target``."""
    names = storage.files_below(source)
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda name: storage.copy(join(source, name), join(target, name)), names))
    for name in storage.files_below(target).keys() - names.keys():
        storage.remove(join(target, name))


def _write_bad_lines(work: str, place: str, reports: Iterable[tuple[str, int]]) -> None:
    storage.remove(place)
    lines = (line for report, before in reports for line in _report_lines(report, before))
    first = next(lines, None)
    if first is not None:
        with new_files(work, [place]) as (file,):
            file.write(first)
            file.writelines(lines)


def _report_lines(place: str, before: int) -> Iterator[bytes]:
    with storage.open_input(place) as report:
        for line in io.BufferedReader(report):
            if before:
                record = json.loads(line)
                record["line"] += before
                line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
            yield line


def _check_same(settings: dict[str, Any], earlier: Any, path: str) -> None:
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


def _check_same_input(recorded: dict[str, dict[str, Any]], domains: Domains, out: Place) -> None:
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


def _is_same_file(path: Place, record: dict[str, Any]) -> bool:
    info = storage.info(path)
    if info is None or info.bytes != record["bytes"]:
        return False
    if info.mtime_ns == record["mtime_ns"]:
        return True
    if "sha256" in record:
        return file_sha256(path) == record["sha256"]
    return record["etag"] is not None and storage.entity_tag(path) == record["etag"]
