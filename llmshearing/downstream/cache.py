"""Results by model and task, so that a killed evaluation goes on where it was and nothing is evaluated twice."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any

from llmshearing.errors import InputError
from llmshearing.fileio import read_json, write_json

log = logging.getLogger(__name__)


class ResultCache:
    """A file for each result, written in one step: of two processes with the same work the later one's stays.

    Args:
        folder: where; made when the first result comes.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, key: dict[str, Any]) -> Path:
        """Where the result of a key is, with the task's name in it for people."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', str(key['task']))[:60]}-{digest[:24]}.json"

    def get(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """The result of this very key; a file that is damaged counts as none, and is said."""
        path = self.path(key)
        if not path.is_file():
            return None
        try:
            found = read_json(path)
            if found["key"] == key and isinstance(found["result"], dict):
                return dict(found["result"])
            reason = "it is of something else"
        except (InputError, KeyError, TypeError) as error:
            reason = str(error)
        log.warning("The cached result '%s' is not used: %s. It is made again.", path, reason)
        return None

    def put(self, key: dict[str, Any], result: dict[str, Any]) -> None:
        """Keep a result."""
        write_json(self.path(key), {"key": key, "result": result})
