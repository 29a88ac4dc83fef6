"""Composer's uploader for a run's folder in an object store, with the run's records and errors of one line."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from composer.core import State
from composer.devices import Device
from composer.loggers import RemoteUploaderDownloader
from composer.utils import dist

from llmshearing import storage
from llmshearing.errors import InputError, one_line
from llmshearing.fileio import remove
from llmshearing.unfinished import checkpoints, newest_first

_PROBE = ".credentials_validated_successfully"  # which Composer leaves
_ATTEMPTS = {"s3": {"client_config": {"retries": {"mode": "adaptive", "max_attempts": storage.ATTEMPTS}}}}


class _Worker(threading.Thread):
    """Hands over what ends it, and says nothing of it on stderr."""

    _kwargs: dict[str, Any]

    def run(self) -> None:
        """See ``threading.Thread``."""
        failures = self._kwargs["exception_queue"]
        try:
            super().run()
        except Exception as error:
            failures.put_nowait(error)


class Uploader(RemoteUploaderDownloader):
    """Copies checkpoints to a store while training goes on; before each, the records of the run as they are then.

    So whatever moment the run is killed at, the metrics in the store reach as far as the newest checkpoint there.

    Args:
        address: of the run's folder in the store.
        folder: the run's folder on this machine, whose files, but not folders, are its records.
        checkpoints: the name of the folder of checkpoints below it.
        keep: how many of them stay in the store, the newest; all if below 0.

    Attributes:
        earlier: names of checkpoints of another run there, which this one overwrites: they count as older than its own.
    """

    def __init__(self, address: str, folder: Path, checkpoints: str, *, keep: int) -> None:
        scheme, bucket, key = storage.split(address)
        self._address, self._folder, self._key = address, folder, key.strip("/")
        self._checkpoints, self._keep = checkpoints, keep
        self._published: dict[Path, int] = {}
        self._error: Exception | None = None
        self.earlier: set[str] = set()
        options = _ATTEMPTS.get(scheme, {})
        # Threads: a process would import everything again, on every rank, and outlive one that is killed.
        super().__init__(f"{scheme}://{bucket}", backend_kwargs=dict(options), use_procs=False)
        self._proc_class: Any = _Worker

    def upload_file(self, state: State, remote_file_name: str, file_path: Path, *, overwrite: bool) -> None:
        """Bring the records up to date, then queue the file."""
        if dist.get_global_rank() == 0:
            self.earlier.difference_update(remote_file_name.split("/"))
            self.publish()
            self.thin_out(max(1, self._keep) if self._keep >= 0 else -1)  # the coming one is not there yet
        elif dist.get_local_rank() == 0:  # Composer removes what is too old of its copies on one node only
            for older in checkpoints(self._folder / self._checkpoints)[1:]:
                remove(older)
        super().upload_file(state, remote_file_name, file_path, overwrite=overwrite)

    def publish(self) -> None:
        """Copy the run's records that have changed.

        Raises:
            InputError: the store does not take them.
        """
        for path in sorted(self._folder.iterdir()) if self._folder.is_dir() else ():
            if path.is_file() and not path.name.startswith("."):
                changed = path.stat().st_mtime_ns
                if self._published.get(path) != changed:
                    storage.upload(path, storage.join(self._address, path.name))
                    self._published[path] = changed

    def finish(self) -> None:
        """Copy the last records, and remove what is not to stay. Errors as for :meth:`publish`."""
        self.publish()
        self.thin_out(self._keep)
        storage.remove(storage.join(self._address, _PROBE))

    def thin_out(self, number: int) -> None:
        """Remove all but the newest ``number`` whole checkpoints from the store; none where it is below 0.

        Raises:
            InputError: the store does not allow it.
        """
        folder = storage.join(self._address, self._checkpoints)
        for name in superseded(storage.files_below(folder), number, self.earlier) if number >= 0 else ():
            storage.remove(storage.join(folder, name))

    def check(self) -> None:
        """See that nothing failed.

        Raises:
            InputError: an upload did.
        """
        if not self._exception_queue.empty():
            self._error = self._exception_queue.get_nowait()
        if self._error is not None:
            raise InputError(
                f"A checkpoint could not be uploaded to '{self._address}': {one_line(self._error)[:300]}. Check access "
                "and network; the same command goes on from the last one that is there."
            ) from self._error

    def wait_for_workers(self, device: Device) -> None:
        """Wait until all is uploaded. Errors as for :meth:`check`."""
        try:
            super().wait_for_workers(device)
        except Exception as error:
            self._error = error
        self.check()

    def _check_workers(self) -> None:
        self.check()

    def _remote_file_name(self, remote_file_name: str) -> str:
        """The key of a file: what Composer names itself, such as the file that it tries access with, is in the run."""
        name: str = super()._remote_file_name(remote_file_name)
        return name if not self._key or name.startswith(f"{self._key}/") else f"{self._key}/{name}"


def superseded(files: Collection[str], number: int, earlier: Collection[str] = ()) -> list[str]:
    """The checkpoints, of the files below their folder, that are older than the newest ``number`` whole ones.

    Those of an ``earlier`` run are older than all others. A sharded one is whole where it has its ``.metadata`` and as
    many files as any other one.
    """
    parts = Counter(name.partition("/")[0] for name in files)
    order = sorted(newest_first(parts), key=lambda name: name in earlier)
    most = max((parts[name] for name in order), default=0)
    whole = [name for name in order if name in files or (f"{name}/.metadata" in files and parts[name] == most)]
    if number > len(whole):
        return []
    return order[order.index(whole[number - 1]) + 1 :] if number else order
