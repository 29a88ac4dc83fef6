"""Which keys of a recipe take an address of an object store; what is given to another is refused, not taken for a path.

docs/object_stores.md has the same for commands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from llmshearing import storage
from llmshearing.errors import InputError

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
#: Keys that take addresses; a domain or the place in a list stands for ``*``.
TAKE = (
    "save_folder",
    "load_path",
    "train_loader.dataset.remote",
    "train_loader.dataset.remote.*",
    "train_loader.dataset.proportions",
    "train_loader.dataset.start",
    "eval_loader.remote",
    "eval_loader.*.remote",
    "algorithms.targeted_pruning.scores",
    "callbacks.dynamic_batch_loading.reference_losses",
    "callbacks.downstream_evaluation.suite",
)
#: Parts whose settings are ours; those of others, such as loggers, mean what their authors say.
_OURS = re.compile(
    r"(save_folder|load_path|model|tokenizer|train_loader|eval_loader|algorithms"
    r"|callbacks\.(dynamic_batch_loading|downstream_evaluation)|loggers\.metrics_log)(\..*)?"
)
_KNOWN = re.compile("|".join(re.escape(key).replace(r"\*", r"[^.]+") for key in TAKE))


def check_addresses(recipe: Mapping[str, Any]) -> None:
    """Refuse addresses where a recipe takes none, and of stores that are not known.

    Raises:
        InputError: names the key.
    """
    for key, value in _texts(recipe):
        if not _ADDRESS.match(value) or not _OURS.fullmatch(key):
            continue
        if not _KNOWN.fullmatch(key):
            raise InputError(
                f"{key} is '{value}', an address, but it has to be on a disk of this machine. Copy it there, and give "
                "the path."
            )
        try:
            storage.is_remote(value)
        except InputError as error:
            raise InputError(f"{key}: {error}") from error


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every string below a value, with its dotted key."""
    if isinstance(value, str):
        yield key, value
    parts = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        yield from _texts(part, f"{key}.{name}" if key else str(name))
