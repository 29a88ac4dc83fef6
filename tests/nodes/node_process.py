"""``python -m tests.nodes.node_process JOB``: one of two nodes that do what JOB says; its result goes to a file."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import distributed

from llmshearing import environment, nodes
from llmshearing.errors import InputError
from llmshearing.fileio import write_json
from llmshearing.together import problems_of_all, together


def refuse(rank: int, by: int) -> None:
    """One rank refuses."""
    with together():
        if rank == by:
            raise InputError("The disk is gone.")


def alike_but_for_versions(rank: int, recipe: dict[str, Any]) -> None:
    """Packages are of another version in each working directory."""
    environment.version = lambda package: f"{package} of {Path.cwd().name}"  # type: ignore[attr-defined]
    nodes.check_alike(recipe)


TASKS: dict[str, Callable[..., Any]] = {
    "alike": lambda rank, recipes: nodes.check_alike(recipes[rank]),
    "alike_but_for_versions": alike_but_for_versions,
    "refuse": refuse,
    "problems": lambda rank, problems: problems_of_all(problems[rank]),
    "disks": lambda rank, folder, **settings: nodes.check_disks(Path(folder), **settings),
    "copies": lambda rank, path: nodes.check_copies(path),
}


def main() -> None:
    """See the module."""
    job = json.loads(Path(sys.argv[1]).read_text())
    rank = job["rank"]
    nodes._APPEARS = 0.3
    distributed.init_process_group("gloo", init_method=f"file://{job['store']}", rank=rank, world_size=2)
    try:
        found = TASKS[job["task"]](rank, **job["arguments"])
    except InputError as error:
        found = f"refused: {error}"
    results = [Path(f"{job['store']}-{each}.result") for each in (0, 1)]
    write_json(results[rank], found)
    while not all(result.exists() for result in results):  # gloo hangs where one end leaves while the other exchanges
        time.sleep(0.01)


if __name__ == "__main__":
    main()
