"""What one rank refuses, all refuse: else the others would wait for it, for ``dist_timeout``."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llmshearing.errors import InputError, about_input
from llmshearing.ranks import gathered


def several() -> bool:
    """Whether the ranks of this run are on more than one node."""
    return int(os.environ.get("WORLD_SIZE", 1)) > int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def node_name() -> str:
    """Of this process' node, for messages."""
    return f"node {os.environ.get('NODE_RANK', 0)} ('{socket.gethostname()}')"


def of_leaders(value: Callable[[], Any]) -> list[Any]:
    """The value of each node's first rank, by node; the others do no work."""
    leader = int(os.environ.get("LOCAL_RANK", 0)) == 0
    return [found[0] for found in gathered([value()] if leader else []) if found]


@contextmanager
def together() -> Iterator[None]:
    """Let all ranks refuse what one of them refuses in this block, in which none may wait for another.

    A rank that has refused has told it by one exchange, of the same form everywhere: those that are still behind it
    hear of it at their next one.

    Raises:
        InputError: what a rank refuses, with the name of its node unless all refuse the same.
    """
    refused: Exception | None = None
    try:
        yield
    except (InputError, OSError) as error:
        refused = error
    found = gathered(None if refused is None else (node_name(), str(about_input(refused))))
    others = [each for each in found if each is not None]
    if others and several() and len({text for _, text in others}) + (len(others) < len(found)) > 1:
        raise InputError(f"On {others[0][0]}: {others[0][1]}") from refused
    if refused is not None:
        raise refused
    if others:
        raise InputError(others[0][1])


def problems_of_all(problems: list[str]) -> list[str]:
    """The problems of all ranks, each once; with the names of the nodes that have one, unless all do."""
    found = gathered(None if not problems else (node_name(), "\n".join(problems)))
    nodes: dict[str, list[str]] = {}
    for node, lines in (each for each in found if each is not None):
        for line in lines.split("\n"):
            nodes.setdefault(line, []).append(node)
    return [
        line if len(having) == len(found) or not several() else f"On {', '.join(dict.fromkeys(having))}: {line}"
        for line, having in nodes.items()
    ]
