"""Results as JSON, by path or by address."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmshearing import storage
from llmshearing.errors import InputError
from llmshearing.fileio import give_json, read_json, write_json
from llmshearing.storage import Place


def unfinished(out: Place) -> str:
    """Where a result is kept until it is whole."""
    return f"{out}.unfinished"


def read(place: Place) -> Any:
    """Parse a JSON file.

    Raises:
        InputError: it is missing, cannot be read or is not JSON.
    """
    if not storage.is_remote(place):
        return read_json(Path(place))
    try:
        return json.loads(storage.read_bytes(place))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"'{place}' is not valid JSON: {error}.") from error


def write(place: Place, value: Any) -> None:
    """Replace a file by a value as JSON, in one step.

    Raises:
        InputError: the store does not take it.
    """
    if not storage.is_remote(place):
        write_json(Path(place), value)
        return
    storage.write_bytes(place, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def give(out: Place | None, value: Any) -> None:
    """Write a result, or send it to stdout where there is no place or it fails at the end; what was kept goes.

    Raises:
        InputError: it cannot be written.
    """
    if out is None or not storage.is_remote(out):
        give_json(None if out is None else Path(out), value)
    else:
        try:
            write(out, value)
        except InputError as error:
            give_json(None, value)
            raise InputError(f"{error} The result is on stdout.") from error
    if out is not None:
        storage.remove(unfinished(out))
