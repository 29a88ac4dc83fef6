"""What one rank refuses, all refuse: else the others would wait for it, for ``dist_timeout``."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import distributed

from llmshearing.errors import InputError


def several() -> bool:
    """Whether the ranks of this run are on more than one node."""
    return int(os.environ.get("WORLD_SIZE", 1)) > int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def node_name() -> str:
    """Of this process' node, for messages."""
    return f"node {os.environ.get('NODE_RANK', 0)} ('{socket.gethostname()}')"


def of_all(value: Any) -> list[Any]:
    """Everybody's value, by rank."""
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return [value]
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, value)
    return found


@contextmanager
def together() -> Iterator[None]:
    """Let all ranks refuse what one of them refuses in this block, in which none may wait for another.

    A rank that has refused has told it by one exchange, of the same form everywhere: those that are still behind it
    hear of it at their next one.

    Raises:
        InputError: this rank's own, or of a rank that has one, with the name of its node.
    """
    refused: Exception | None = None
    try:
        yield
    except (InputError, OSError) as error:
        refused = error
    found = of_all(None if refused is None else (node_name(), str(refused)))
    if refused is not None:
        raise refused
    for other in found:
        if other is not None:
            raise InputError(f"On {other[0]}: {other[1]}")


def problems_of_all(problems: list[str]) -> list[str]:
    """The problems of all ranks, each once; with the name of the node where they are not those of every rank."""
    found = of_all(None if not problems else (node_name(), "\n".join(problems)))
    if not several() or len(set(found)) == 1:
        return problems or [line for other in found if other is not None for line in other[1].split("\n")]
    lines = [f"on {other[0]}: {line}" for other in found if other is not None for line in other[1].split("\n")]
    return list(dict.fromkeys(lines))
