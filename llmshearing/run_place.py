"""Where a run writes: its folder, or where ``save_folder`` is an address, a working copy on each node and the store.

    1  the newest whole checkpoint and the records of the run -> working copy     RunPlace.fetch
    2  training writes to the working copy, as to any folder                      Composer, MetricsLog
    3  at each checkpoint, records and then checkpoint -> store                   Uploader
    4  at the end, the last records -> store; the working copy goes               RunPlace.close

What is in the store is the run. A working copy that a killed process left is cleared when the run goes on, here or on
another machine. Two machines must not run the same run at once: a store has no lock that would keep the second out.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from composer.callbacks import CheckpointSaver
from composer.core import State
from composer.utils import dist

from llmshearing import storage
from llmshearing.copies import fetch, followed, name_of, parent_of
from llmshearing.errors import IncompleteError, InputError, UntrustedError
from llmshearing.fileio import remove
from llmshearing.run_folder import claim
from llmshearing.together import together
from llmshearing.unfinished import checkpoints, newest_checkpoint, newest_first
from llmshearing.uploader import Uploader

log = logging.getLogger(__name__)


class RunPlace:
    """Where a run writes.

    Args:
        recipe: complete.

    Attributes:
        recipe: the same, with paths of this machine where it has addresses to save to and to load from.
        address: of the run's folder in the store; ``None`` where it is on a disk.
        folder: the run's folder on this machine.
        uploader: what copies checkpoints to the store; ``None`` for none.
    """

    def __init__(self, recipe: dict[str, Any]) -> None:
        save, load = recipe["save_folder"], recipe["load_path"]
        self.recipe, self.address, self.uploader = dict(recipe), None, None
        self._own: str | None = None  # checkpoint that the run goes on from
        self._copies: list[Path] = []  # that this process has taken, and removes
        self._saves, self._loads, self._keep = save.rstrip("/"), load, recipe["save_num_checkpoints_to_keep"]
        if load is not None and storage.is_remote(load):
            # Of each run its own: another one may start from the same.
            self.recipe["load_path"] = str(working_copy(load, self._saves) / name_of(load))
        if storage.is_remote(save):
            self.address = parent_of(self._saves)
            local = working_copy(self.address) / name_of(self._saves)
            self.recipe |= {"save_folder": str(local), "save_num_checkpoints_to_keep": 1}
            self.uploader = Uploader(self.address, local.parent, local.name, keep=self._keep)
        self.folder = Path(self.recipe["save_folder"]).parent

    def claim(self) -> None:
        """Take the run's folder, and with an address the working copies of each node.

        Raises:
            InputError: another process holds it.
        """
        if dist.get_local_rank() == 0 and (self.address is not None or dist.get_global_rank() == 0):
            claim(self.folder)
            self._copies += [self.folder] if self.address is not None else []
        if dist.get_local_rank() == 0 and self._loads != self.recipe["load_path"]:
            copy = Path(self.recipe["load_path"]).parent
            claim(copy)
            self._copies.append(copy)

    def fetch(self) -> None:
        """Bring what the run begins with to each node. For all ranks together.

        Raises:
            InputError: on all ranks: the store cannot be read or written, or holds checkpoints that the run would
                write again; there is no room for a checkpoint.
        """
        chosen: list[Any] = [None]
        with together():
            if dist.get_global_rank() == 0 and self.address is not None:
                chosen = [self._begin(self.address)]
        dist.broadcast_object_list(chosen)
        self._own = chosen[0]
        with together():
            if dist.get_local_rank() == 0:
                self._fetch_checkpoints()

    def _fetch_checkpoints(self) -> None:
        if self.address is not None and dist.get_global_rank() != 0:
            clear(self.folder)
            if self._own is not None:
                fetch(f"{self._saves}/{self._own}", Path(self.recipe["save_folder"]) / self._own)
        if self._loads is not None and self._loads != self.recipe["load_path"] and self._own is None:
            target = Path(self.recipe["load_path"])
            clear(target.parent)
            fetch(followed(self._loads), target)

    def here(self, start: str | None) -> str | None:
        """Where on this node the checkpoint is that rank 0 has at ``start``: ``TMPDIR`` may differ between nodes."""
        if start is None or (self.address is None and self._loads == self.recipe["load_path"]):
            return start
        if self._own is not None:
            return str(Path(self.recipe["save_folder"]) / self._own)
        return str(self.recipe["load_path"]) if Path(start).name == name_of(self.recipe["load_path"]) else start

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Let errors name the addresses that working copies are of."""
        try:
            yield
        except InputError as error:
            text = str(error)
            if self._loads is not None:
                text = text.replace(str(self.recipe["load_path"]), self._loads)
            if self.address is not None:
                text = text.replace(str(self.folder), self.address)
            raise type(error)(text) from error

    def checkpoint_saver(self) -> list[CheckpointSaver]:
        """What saves to the working copy and from there to the store; none where the run is on a disk."""
        if self.address is None:
            return []
        _, _, key = storage.split(self._saves)
        saver = CheckpointSaver(
            folder=self.recipe["save_folder"],
            remote_file_name=f"{key}/ep{{epoch}}-ba{{batch}}-rank{{rank}}.pt",
            latest_remote_file_name=f"{key}/latest-rank{{rank}}.pt",
            save_interval=self.recipe["save_interval"],
            overwrite=True,  # fetch has looked
            num_checkpoints_to_keep=1,
        )
        return [saver]

    def count_earlier_checkpoints(self, state: State) -> None:
        """Of ``save_num_checkpoints_to_keep`` Composer counts only its process': every resume would leave one."""
        found = reversed(checkpoints(Path(self.recipe["save_folder"])))
        earlier = [str(path / "shards" if path.is_dir() else path) for path in found]
        for callback in state.callbacks:
            if isinstance(callback, CheckpointSaver):
                callback.saved_checkpoints[:0] = earlier  # of a sharded one it removes the folder that the path is in

    def finish(self) -> None:
        """Wait until all is in the store, with the last records, and remove what is not to be kept there.

        Raises:
            InputError: something could not be uploaded.
        """
        if self.uploader is not None:
            self.uploader.check()
            dist.barrier()  # until all ranks have uploaded all
            if dist.get_global_rank() == 0:
                self.uploader.finish()

    def give_up(self) -> None:
        """Bring the last records of a run that failed to the store, if it takes them."""
        if self.uploader is not None and dist.get_global_rank() == 0:
            try:
                self.uploader.publish()
            except InputError as error:
                log.warning("%s", error)

    def close(self) -> None:
        """Remove the working copies."""
        for folder in self._copies:
            clear(folder)

    def _begin(self, address: str) -> str | None:
        """Fetch the records and the newest whole checkpoint; returns its name."""
        probe = storage.join(address, ".writable")
        storage.write_bytes(probe, b"")
        storage.remove(probe)
        clear(self.folder)
        for name in storage.files_below(address):
            if "/" not in name and name.endswith((".json", ".jsonl", ".yaml")):
                storage.download(storage.join(address, name), self.folder / name)
        found = {name.partition("/")[0] for name in storage.files_below(self._saves)}
        names = newest_first(found)
        if not self.recipe["autoresume"]:
            if names and not self.recipe["save_overwrite"]:
                raise InputError(
                    f"save_folder '{self._saves}' holds '{names[0]}' of another run. Set autoresume=true to go on with "
                    "that, save_overwrite=true to write over it, or choose another save_folder."
                )
            if self.uploader is not None:
                self.uploader.earlier = set(names)
            return None
        return next((name for name in names if self._take(name)), None)

    def _take(self, name: str) -> bool:
        """Fetch a checkpoint; whether it is whole. A sharded one that was not finished is removed.

        Raises:
            InputError: it is damaged.
        """
        place, folder = f"{self._saves}/{name}", Path(self.recipe["save_folder"])
        fetch(place, folder / name)
        try:
            if newest_checkpoint(folder) is not None:
                return True
        except UntrustedError:  # which find_start says
            return True
        except IncompleteError:
            pass
        if name.endswith(".pt"):
            raise InputError(f"'{place}' is damaged. Move it away, and the run goes on from the one before it.")
        log.warning("Removing '%s': the run ended while it was uploaded.", place)
        storage.remove(place)
        remove(folder)
        return False


def working_copy(address: str, *of: str) -> Path:
    """The folder of this machine for a run whose folder is at an address, or for what is there for a run ``of`` one."""
    digest = hashlib.blake2b(" ".join((address, *of)).encode(), digest_size=6).hexdigest()
    name = re.sub(r"[^\w.-]", "-", name_of(address))
    return Path(tempfile.gettempdir()) / f"llmshearing-{os.getuid()}" / f"{name}-{digest}"


def clear(folder: Path) -> None:
    """Remove all in a working copy but the lock that this process holds."""
    for path in folder.iterdir():
        if path.name != ".lock":
            remove(path)
