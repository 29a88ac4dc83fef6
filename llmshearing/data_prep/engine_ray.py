"""Tasks on the machines of a Ray cluster; nothing else of the project imports Ray."""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from llmshearing import storage
from llmshearing.data_prep.engine import Update, complete
from llmshearing.data_prep.tasks import Job, Result, Task
from llmshearing.errors import InputError
from llmshearing.fileio import read_json
from llmshearing.storage import join

#: How often a task is begun anew whose worker or node was lost.
MAX_RETRIES = 10
#: Tasks that are handed over for each core: enough that none waits, few enough that those lost with a node are few.
TASKS_PER_CORE = 2


class RayEngine(AbstractContextManager["RayEngine"]):
    """A running cluster, or one of this machine alone that ends with the engine.

    Raises:
        InputError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, job: Job, num_workers: int | None, address: str | None) -> None:
        try:
            import ray
        except ImportError as error:
            raise InputError("--engine ray needs Ray: pip install 'llmshearing[ray]'.") from error
        self._ray = ray
        self._num_workers = num_workers
        self._joined = not ray.is_initialized()
        if self._joined:
            # Without an address, Ray takes that of RAY_ADDRESS or of this machine's cluster, or begins one.
            options: dict[str, Any] = {"address": address} if address else {}
            try:
                ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING, **options)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise InputError(
                    f"The Ray cluster at '{address or os.environ.get('RAY_ADDRESS', 'auto')}' cannot be reached: "
                    f"{error}. Start one (ray start --head), or see --ray-address."
                ) from error
        self._job = ray.put(job)
        # In turn on all nodes, and again on another one where a process or a node is lost.
        options = {"max_retries": MAX_RETRIES, "scheduling_strategy": "SPREAD", "num_cpus": 1}
        self._perform: Any = ray.remote(**options)(_perform)

    def __exit__(self, *_: object) -> None:
        if self._joined:
            self._ray.shutdown()

    def run(self, task: Task[Result], arguments: Sequence[Any]) -> Iterator[Update[Result]]:
        """See :class:`data_prep.engine.Engine`."""
        waiting = deque(enumerate(arguments))
        running: dict[Any, int] = {}
        total = 0
        try:
            while waiting or running:
                while waiting and len(running) < self._most():
                    number, argument = waiting.popleft()
                    running[self._perform.remote([self._job], task, argument)] = number
                ready, _ = self._ray.wait(list(running), timeout=1)
                finished = [(running.pop(reference), self._ray.get(reference)) for reference in ready]
                total += sum(tokens for _, (tokens, _) in finished)
                yield total, [(number, result) for number, (_, result) in finished]
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"Ray gave a task up after {MAX_RETRIES} attempts, most likely for want of memory ({reason}). The same "
                "command goes on from here."
            ) from error
        finally:
            for reference in running:
                self._ray.cancel(reference, force=True)

    def _most(self) -> int:
        cores = int(self._ray.cluster_resources().get("CPU", 1))  # nodes come and go
        return self._num_workers or TASKS_PER_CORE * max(cores, 1)


# The job that this process has last worked for, by its reference.
_known: dict[str, Job] = {}


def _perform(references: list[Any], task: Task[Result], argument: Any) -> tuple[int, Result]:
    """A task on a node; the job comes by reference, and once for all tasks of a process."""
    import ray

    (reference,) = references
    if reference.hex() not in _known:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # or each worker would use every core
        job: Job = ray.get(reference)
        _check_seen(job)
        _known.clear()
        _known[reference.hex()] = job
    return complete(task(_known[reference.hex()], argument))


def _check_seen(job: Job) -> None:
    place = join(job.work, "run.json")
    if storage.info(place) is None or read_json(place) != job.run:
        raise InputError(
            f"The machine {socket.gethostname()} of the Ray cluster does not see '{job.work}'. OUT has to be a folder "
            "that all machines share, or an address."
        )
