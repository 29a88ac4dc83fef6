"""Where the tasks of a preparation run: ``engine.run(task, arguments)`` gives the same results on any engine."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from llmshearing.data_prep.tasks import Job, Result, Task
from llmshearing.errors import InputError

ENGINES = ("local", "ray")

#: The tokens done so far, and the tasks finished since the last time: the place of each in the arguments, its result.
Update = tuple[int, list[tuple[int, Result]]]


class Engine(AbstractContextManager["Engine"], Protocol):
    """Runs tasks of one job until it is left."""

    def run(self, task: Task[Result], arguments: Sequence[Any]) -> Iterator[Update[Result]]:
        """Run a task for each argument, in any order, begun in this one; the first error of any ends all.

        Yields:
            about once a second, and whenever a task is finished: what is done.

        Raises:
            InputError: a task's, or tasks are killed again and again.
        """


class InProcess(AbstractContextManager["InProcess"]):
    """Runs tasks one after the other in this process."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, task: Task[Result], arguments: Sequence[Any]) -> Iterator[Update[Result]]:
        """See :class:`Engine`."""
        total = 0
        for number, argument in enumerate(arguments):
            running = task(self._job, argument)
            while True:
                try:
                    total += next(running)
                except StopIteration as stop:
                    yield total, [(number, stop.value)]
                    break
                yield total, []


def complete(running: Generator[int, None, Result]) -> tuple[int, Result]:
    """The tokens and the result of a task that nobody watches."""
    total = 0
    while True:
        try:
            total += next(running)
        except StopIteration as stop:
            return total, stop.value


def open_engine(name: str, job: Job, *, num_workers: int | None, ray_address: str | None) -> Engine:
    """The engine of a name.

    Args:
        name: one of ``ENGINES``.
        job: whose tasks it runs.
        num_workers: tasks that run at a time; None: as many as there are cores.
        ray_address: of a running cluster; None: that of ``RAY_ADDRESS`` or of this machine, else a new one here.

    Raises:
        InputError: the engine is not installed, or the cluster cannot be reached.
    """
    if name == "ray":
        from llmshearing.data_prep.engine_ray import RayEngine

        return RayEngine(job, num_workers, ray_address)
    if ray_address is not None:
        raise InputError(f"--ray-address {ray_address} is for --engine ray.")
    from llmshearing.data_prep.engine_local import LocalEngine

    return LocalEngine(job, num_workers)
