"""A working copy of a checkpoint in an object store: what conversion reads of it, and not two thirds more."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from llmshearing import copies, storage
from llmshearing.convert.sharded import STRUCTURE, read_structure


def fetch_checkpoint(address: str, target: Path) -> None:
    """Copy a checkpoint to ``target``: of a sharded one all but the tensors of optimizers, of any other all.

    What is left out are holes in its files, which take no room on most disks.

    Raises:
        InputError: there is none, it cannot be read, or there is no room for it.
    """
    files = storage.files_below(address)
    if STRUCTURE not in files:  # a file, a model's folder, or nothing
        copies.fetch(address, target)
        return
    storage.download(storage.join(address, STRUCTURE), target / STRUCTURE)
    structure = read_structure(target / STRUCTURE, (target / STRUCTURE).read_bytes())
    places: dict[str, list[tuple[int, int]]] = {}
    for index, part in structure.storage_data.items():
        if (known := files.get(part.relative_path)) is None:
            continue  # which reading the checkpoint says
        wanted = places.setdefault(part.relative_path, [])
        if not _is_of_optimizers(structure, index.fqn):
            wanted.append((min(part.offset, known.bytes), min(part.offset + part.length, known.bytes)))
    copies.check_space(target, sum(end - begin for parts in places.values() for begin, end in parts), address)
    for name, parts in places.items():
        storage.download(storage.join(address, name), target / name, sorted(parts))


def _is_of_optimizers(structure: SimpleNamespace, name: str) -> bool:
    """Whether a leaf is a tensor of an optimizer's."""
    path, described = structure.planner_data.get(name, ()), structure.state_dict_metadata.get(name)
    return path[:2] == ("state", "optimizers") and hasattr(described, "chunks")
