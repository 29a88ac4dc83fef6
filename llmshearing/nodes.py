"""What a run on several machines needs: one network, one recipe, one disk; found out before weights are read."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from llmshearing.devices import fsdp_version
from llmshearing.environment import versions
from llmshearing.errors import InputError, LostError, one_line
from llmshearing.fileio import digest_of_files
from llmshearing.ranks import rank, shared
from llmshearing.together import node_name, of_leaders, several
from llmshearing.unfinished import batch_of, checkpoints

log = logging.getLogger(__name__)

_APPEARS = 5.0  # seconds that a disk of the network may take to show a new file on another node
_TAIL = 1 << 16  # bytes at the end of a file of torch.save, in which the checksums of all its parts lie
_PLACES = ("save_folder", "load_path")  # which check_copies and unshared look at
_NODES_OWN = ("variables", "loggers", "python_log_level", "progress_bar", "log_to_console", "console_log_interval")
# What gloo, torch's store and NCCL say when a process at the other end is gone or was never there.
_GONE = (
    "gloo",
    "Gloo",
    "NCCL",
    "clients joined",
    "client socket",
    "Socket Timeout",
    "wait timeout",
    "Connection reset",
)


def choose_interface() -> None:
    """Have gloo use the network that leads to the first node, unless ``GLOO_SOCKET_IFNAME`` says which.

    By itself it takes the one that this host's name stands for, which is often the loopback or another network's.
    """
    if not several() or "GLOO_SOCKET_IFNAME" in os.environ or "MASTER_ADDR" not in os.environ:
        return
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(os.environ["MASTER_ADDR"], 1, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:  # sends nothing
            probe.connect(address)
            own = probe.getsockname()[0]
    except OSError:
        return  # the process group will say so
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address.split("%")[0] == own for each in addresses):
            os.environ["GLOO_SOCKET_IFNAME"] = name


@contextmanager
def lost_contact() -> Iterator[None]:
    """Say in one line that processes of other nodes are gone.

    Raises:
        LostError: in the place of what gloo, NCCL or torch's store raise.
    """
    try:
        yield
    except RuntimeError as error:
        if not several() or not any(part in str(each) for each in _chain(error) for part in _GONE):
            raise
        raise LostError(
            f"Rank {os.environ.get('RANK')} on {node_name()} has lost the processes of another node, or never reached "
            f"them ({one_line(error).splitlines()[0][:200]}). If another node ended first, its output says why; if "
            "none started, see MASTER_ADDR, MASTER_PORT and GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME. Start the same "
            "command on all nodes again: with autoresume=true it goes on from the newest checkpoint."
        ) from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it came of, which a mere `Application timeout` does not name."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def check_alike(recipe: Mapping[str, Any]) -> None:
    """Check that all nodes run one recipe, on the same files, by the same code.

    Folders that are caches may differ, and settings that only the first rank or nobody's numbers heed.

    Raises:
        InputError: names what differs, where, and how.
    """
    if not several():
        return
    (first, expected), *others = of_leaders(lambda: (node_name(), _facts(recipe)))
    for node, found in others:
        for what in (*expected, *(found.keys() - expected.keys())):
            if expected.get(what) != found.get(what):
                here, there = found.get(what, "not there"), expected.get(what, "not there")
                raise InputError(
                    f"{what} is {here} on {node}, but {there} on {first}. Give all nodes the same recipe, files and "
                    "versions."
                )


def _facts(recipe: Mapping[str, Any]) -> dict[str, str]:
    """What is to be alike, by what a message calls it."""
    settings = _flat(recipe)
    contents = {f"'{value}' ({key})": _content(value) for key, value in settings.items() if key not in _PLACES}
    return {
        **{f"The recipe's {key}": repr(value) for key, value in settings.items()},
        "The environment's FSDP_VERSION": str(fsdp_version()),
        **{f"The version of {package}": found for package, found in versions().items()},
        **{what: content for what, content in contents.items() if content is not None},
    }


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Settings by dotted names, without those that nodes may have of their own."""
    if not isinstance(value, (Mapping, list)):
        return {name: value}
    if isinstance(value, list):
        value = {str(place): part for place, part in enumerate(value)}
    own = {"local"} if value.get("remote") is not None else set(() if name else _NODES_OWN)
    parts = (_flat(part, f"{name}.{key}" if name else str(key)) for key, part in value.items() if key not in own)
    return {key: setting for part in parts for key, setting in part.items()}


def _content(value: Any) -> str | None:
    """A digest of the file that a setting names, or of what describes a folder; ``None`` where it names none."""
    if not isinstance(value, str) or not value:
        return None
    try:
        if Path(value).is_dir():  # of a model or tokenizer, of prepared data, or with a folder of it per domain
            files = sorted((*Path(value).glob("*.json"), *Path(value).glob("*/index.json")))
        else:
            files = [Path(value)] if Path(value).is_file() else []
        return f"of digest {digest_of_files(files)[:8]}" if files else None
    except (OSError, ValueError):
        return None


def check_disks(save_folder: Path, *, sharded: bool, autoresume: bool) -> None:
    """Check that checkpoints are whole where they are written, and are found where the run goes on.

    Args:
        save_folder: of the run, on a disk; its parent is there on the first node.
        sharded: whether every rank writes its own part.
        autoresume: whether the run goes on from what it finds there.

    Raises:
        InputError: it is another folder on another node, and that loses checkpoints.
    """
    if not (apart := unshared(save_folder.parent)):
        return
    if sharded:
        raise InputError(
            f"save_folder '{save_folder}' is on another disk on {apart[0]} than on the first node, and each would have "
            "only its own part of every checkpoint. Put it on a disk that all nodes share, or set "
            "fsdp_config.state_dict_type to full."
        )
    found = of_leaders(lambda: (node_name(), max(map(batch_of, checkpoints(save_folder)), default=-1)))
    latest = max(found, key=lambda each: each[1])
    if autoresume and latest[1] > found[0][1]:
        raise InputError(
            f"The newest checkpoint in save_folder '{save_folder}' is that of batch {latest[1]} on {latest[0]}, but "
            f"the run would go on from the disk of {found[0][0]}. Copy it there, or start that node as the first."
        )
    if rank() == 0:
        log.warning(
            "save_folder '%s' is on another disk on %s. This node alone has the checkpoints: to go on from one, copy "
            "it to the same path of every node first.",
            *(save_folder, ", ".join(apart)),
        )


def unshared(folder: Path) -> list[str]:
    """The nodes on which ``folder``, made by the first rank, is another one than there."""
    path = shared(folder / f".shared-{secrets.token_hex(8)}")
    if rank() == 0:
        path.touch()
    try:
        return [name for name, there in of_leaders(lambda: (node_name(), _appears(path))) if not there]
    finally:
        if rank() == 0:
            path.unlink()


def _appears(path: Path) -> bool:
    deadline = time.monotonic() + _APPEARS
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        for above in reversed(path.parents):  # has a network's disk look again
            if above.is_dir():
                os.listdir(above)
        time.sleep(0.2)
    return True


def check_copies(path: str) -> None:
    """Check that all nodes see the first one's checkpoint.

    Raises:
        InputError: it is not there on some, or another one.
    """
    found = of_leaders(lambda: (node_name(), _digest(Path(path))))
    first, expected = found[0]
    for node, digest in found:
        if digest != expected:
            state = "not there" if digest is None else "another one"
            raise InputError(
                f"The run goes on from '{path}' of {first}, which is {state} on {node}: their disk is not shared. Copy "
                "it to the same path of every node, or use a folder that all nodes share."
            )


def _digest(path: Path) -> str | None:
    """Of a checkpoint, without reading all of it; ``None`` where there is none."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        if path.is_dir():
            digest.update(str(sorted((file.name, file.stat().st_size) for file in path.iterdir())).encode())
        with (path / ".metadata" if path.is_dir() else path).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            digest.update(f"{size} ".encode() + file.read())
    except OSError:
        return None
    return digest.hexdigest()
