"""What the data is opened with, checked before anything is opened."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from streaming.base.distributed import get_world_size
from streaming.base.hashing import get_hashes
from streaming.base.util import bytes_to_int

from llmshearing.data.settings import by_domain, flag, number, whole
from llmshearing.errors import InputError, unknown_name
from llmshearing.fileio import read_json

Folder = str | os.PathLike[str]
Folders = Folder | Mapping[str, Folder | None] | None  # one that holds a folder per domain, or each domain's


def check_dataset(proportions: Any, counts: Any, settings: Mapping[str, Any]) -> None:
    """Check the arguments of a ``DynamicStreamingDataset`` one by one.

    Args:
        proportions: by domain, as given or read from a file.
        counts: samples used by domain, as given or read from a file.
        settings: all other arguments by name.

    Raises:
        InputError: one has the wrong type, or a value that it cannot have.
    """
    by_domain("proportions", proportions, "{web: 0.7, books: 0.3}, or as the path of a shearing.json")
    for domain, share in proportions.items():
        number(f"proportions.{domain}", share, most=1)
    if not proportions:
        raise InputError("proportions: {} names no domain. Write it as {web: 0.7, books: 0.3}.")
    by_domain("start", counts, "{web: 1000, books: 500}, or as the path of a shearing.json")
    for domain, used in counts.items():
        if domain not in proportions:
            raise unknown_name("domain in start", domain, proportions)
        whole(f"start.{domain}", used)
    for key in ("update_interval", "batch_size", "shuffle_block_size", "sub_streams", "download_retry"):
        whole(key, settings[key], least=1)
    if (sub_streams := settings["sub_streams"]) & sub_streams - 1:
        raise InputError(f"sub_streams: {sub_streams!r} is not a power of two. Set it to one, such as 16 or 64.")
    check_replication(settings["replication"], get_world_size())
    whole("shuffle_seed", settings["shuffle_seed"])
    for key, least in (("seq_len", 1), ("vocab_size", 1), ("predownload", 0)):
        if settings[key] is not None:
            whole(key, settings[key], least=least)
    for key in ("update_timeout", "download_timeout"):
        number(key, settings[key], above=True)
    flag("keep_zip", settings["keep_zip"])
    if settings["on_exhausted"] not in ("repeat", "stop"):
        raise unknown_name("on_exhausted", settings["on_exhausted"], ("repeat", "stop"))
    check_token_dtype(settings["token_dtype"])
    check_hash(settings["validate_hash"])
    check_cache_limit(settings["cache_limit"])
    check_folders("local", settings["local"], proportions)
    if settings["remote"] is not None:
        check_folders("remote", settings["remote"], proportions)


def check_replication(ranks: Any, world_size: int) -> None:
    """Check how many of ``world_size`` ranks get the same samples, or ``None``."""
    if ranks is None:
        return
    whole("replication", ranks, least=1)
    if world_size % ranks:
        raise InputError(
            f"replication: {ranks} does not divide the {world_size} ranks into groups. Set it to the size of a tensor- "
            "or context-parallel group."
        )


def check_token_dtype(name: Any) -> None:
    """Check the numpy type of tokens, or ``None``."""
    if name is None:
        return
    try:
        is_whole = np.dtype(name).kind in "iu"
    except (TypeError, ValueError):
        is_whole = False
    if not is_whole:
        raise InputError(f"token_dtype: {name!r} is not a type of whole numbers. Set it to uint16, int32 or int64.")


def check_hash(name: Any) -> None:
    """Check the name of a hash algorithm, or ``None``."""
    if name is not None and not (isinstance(name, str) and name in get_hashes()):
        raise unknown_name("validate_hash", name, get_hashes())


def check_cache_limit(limit: Any) -> None:
    """Check a number of bytes such as 100gb, or ``None``."""
    if limit is None:
        return
    try:
        least = isinstance(limit, (int, str)) and not isinstance(limit, bool) and bytes_to_int(limit) > 0
    except ValueError:
        least = False
    if not least:
        raise InputError(f"cache_limit: {limit!r} is not a number of bytes above 0. Set it to one, such as 100gb.")


def check_folders(key: str, folders: Any, domains: Iterable[str]) -> None:
    """Check one folder that holds all domains, or one by domain; only remote ones may be ``None``."""
    if isinstance(folders, Mapping):
        for domain in domains:
            if domain not in folders:
                raise InputError(f"{key}: {dict(folders)!r} has no domain '{domain}'. Give its folder too.")
        for domain, folder in folders.items():
            if folder is not None or key == "local":
                _check_folder(f"{key}.{domain}", folder)
    else:
        _check_folder(key, folders)


def _check_folder(key: str, folder: Any) -> None:
    if not isinstance(folder, (str, os.PathLike)) or not os.fspath(folder):
        raise InputError(f"{key}: {folder!r} is not the path of a folder. Set it to where the prepared data is.")
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise InputError(f"{key}: {os.fspath(folder)!r} is a file. Set it to the folder of the prepared data.")


def folder_of_each(root: Folders, domains: Iterable[str]) -> dict[str, str | None]:
    """The folder of each domain."""
    if root is None or isinstance(root, (str, os.PathLike)):
        return {domain: None if root is None else os.path.join(root, domain) for domain in domains}
    return {domain: None if folder is None else os.fspath(folder) for domain, folder in root.items()}


@contextmanager
def opens(what: str) -> Iterator[None]:
    """Say of any error within that the data cannot be opened: clouds' clients raise errors of their own kinds.

    Raises:
        InputError: in the place of what was raised.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if str(error).startswith("Internal error"):  # of streaming's ranks among themselves
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"The data cannot be opened: {what} ({reason}). Check local and remote, the packages and credentials that "
            "remote needs, and that local can be written."
        ) from error


def read_reference_losses(source: Mapping[str, float] | str | Path | None) -> dict[str, float]:
    """Reference losses by domain, as given or of the file that has them; none where ``source`` is ``None``.

    Raises:
        InputError: they are not numbers by domain, or the file has none.
    """
    losses: Any = {} if source is None else source
    if isinstance(source, (str, Path)):
        content = read_json(source)
        losses = content.get("losses") if isinstance(content, dict) else None
        if not isinstance(losses, dict):
            raise InputError(
                f"'{source}' has no 'losses' by domain, as python -m llmshearing.reference_loss writes them."
            )
    by_domain("reference_losses", losses, "{web: 2.1, books: 2.4}, or as the path of a file that has them")
    for domain, loss in losses.items():
        number(f"reference_losses.{domain}", loss)
    return dict(losses)
