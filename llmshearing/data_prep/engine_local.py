"""Tasks in processes of this machine, each with its copy of the encoder."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from llmshearing.data_prep.engine import Update
from llmshearing.data_prep.tasks import Job, Result, Task
from llmshearing.errors import InputError

# Set in each worker by _start_worker.
_job: Job
_tokens_done: Synchronized[int]
_stop: Event


class LocalEngine(AbstractContextManager["LocalEngine"]):
    """A pool of worker processes, which are started when there is work for them and end with the engine."""

    def __init__(self, job: Job, num_workers: int | None) -> None:
        context = multiprocessing.get_context("spawn")  # a fork taken while threads run can deadlock
        self._tokens_done = context.Value("Q")
        self._stop = context.Event()
        # Not as an argument: where a worker dies before it has read more than a pipe holds, its start never returns.
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name, "job.pickle")
        path.write_bytes(pickle.dumps(job))
        self._executor = ProcessPoolExecutor(
            num_workers or os.cpu_count() or 1, context, _start_worker, (path, self._tokens_done, self._stop)
        )

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._executor.shutdown(cancel_futures=True)
        self._folder.cleanup()

    def run(self, task: Task[Result], arguments: Sequence[Any]) -> Iterator[Update[Result]]:
        """See :class:`data_prep.engine.Engine`."""
        before = self._tokens_done.value
        try:
            running = {self._executor.submit(_perform, task, argument): at for at, argument in enumerate(arguments)}
            while running:
                done, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)
                yield self._tokens_done.value - before, [(running.pop(future), future.result()) for future in done]
        except BrokenProcessPool as error:
            raise InputError(
                "A worker process was killed, most likely for want of memory: use fewer --workers; the same command "
                "goes on from here. A script that prepares data by the function does so under "
                "`if __name__ == '__main__':`, or its workers would prepare it too."
            ) from error


def _start_worker(job: Path, tokens_done: Synchronized[int], stop: Event) -> None:
    global _job, _tokens_done, _stop
    _job, _tokens_done, _stop = pickle.loads(job.read_bytes()), tokens_done, stop
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # or each worker would use every core
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the main process sets ``stop``

    def follow_parent() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)  # the main process was killed: without this, its workers would wait for it for ever

    threading.Thread(target=follow_parent, daemon=True).start()


def _perform(task: Task[Result], argument: Any) -> Result:
    running = task(_job, argument)
    while True:
        try:
            tokens = next(running)
        except StopIteration as stopped:
            return stopped.value
        with _tokens_done.get_lock():
            _tokens_done.value += tokens
        if _stop.is_set():
            running.close()
            raise InterruptedError
