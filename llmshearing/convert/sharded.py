"""A checkpoint that ``torch.distributed.checkpoint`` wrote to a folder: ``.metadata`` and ``__<rank>_<n>.distcp``.

``.metadata`` is a pickle of dataclasses. It has the path of every leaf of the state (``planner_data``), the shape and
pieces of every tensor (``state_dict_metadata``) and where each piece lies (``storage_data``): a slice of a ``.distcp``
file that is an archive of ``torch.save``. A leaf that is not a tensor is a slice of its own, so an empty mapping, which
has no leaf, is not kept.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Mapping
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from llmshearing.convert.archive import Archive, refusal
from llmshearing.convert.checkpoint import MODEL_PREFIX, Checkpoint
from llmshearing.convert.held import HeldFile, allow_open_files, unreadable
from llmshearing.convert.stored import Piece, StoredTensor
from llmshearing.errors import IncompleteError, InputError, UntrustedError

STRUCTURE = ".metadata"


class _Index:
    """``MetadataIndex``: a leaf, or the piece of a tensor that begins at ``offset``."""

    offset: tuple[int, ...] | None = None

    def __init__(self, fqn: str, offset: tuple[int, ...] | None) -> None:
        self.fqn, self.offset = fqn, offset

    def __hash__(self) -> int:
        return hash((self.fqn, self.offset))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Index) and (self.fqn, self.offset) == (other.fqn, other.offset)


class _Properties:
    """``TensorProperties``, of which only the dtype matters."""

    dtype: torch.dtype

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = state[0]


def _ignored(*_: Any) -> None:
    """Memory formats and the path that the checkpoint was written to."""


# What may stand in .metadata, and what is built instead. Stand-ins, because importing the real classes takes seconds.
_STAND_INS: dict[str, Any] = {
    "torch.distributed.checkpoint.metadata.Metadata": SimpleNamespace,
    "torch.distributed.checkpoint.metadata.MetadataIndex": _Index,
    "torch.distributed.checkpoint.metadata.TensorStorageMetadata": SimpleNamespace,
    "torch.distributed.checkpoint.metadata.BytesStorageMetadata": SimpleNamespace,
    "torch.distributed.checkpoint.metadata.ChunkStorageMetadata": SimpleNamespace,
    "torch.distributed.checkpoint.metadata.StorageMeta": SimpleNamespace,
    "torch.distributed.checkpoint.metadata.TensorProperties": _Properties,
    "torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING": _ignored,
    "torch.distributed.checkpoint.filesystem._StorageInfo": SimpleNamespace,
    "torch.serialization._get_layout": _ignored,
    "torch.Size": tuple,
    "pathlib.PosixPath": _ignored,
    "pathlib._local.PosixPath": _ignored,  # its name in Python 3.13
}


class _Unpickler(pickle.Unpickler):
    """Builds the stand-ins, and nothing else."""

    def __init__(self, path: Path, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        dtype = vars(torch).get(name) if module == "torch" else None
        if isinstance(dtype, torch.dtype):
            return dtype
        if f"{module}.{name}" not in _STAND_INS:
            raise UntrustedError(refusal(self.path, f"{module}.{name}"))
        return _STAND_INS[f"{module}.{name}"]


class Sharded(Checkpoint):
    """A sharded checkpoint, written by any number of ranks. Opening it reads the structure of every tensor's pieces."""

    def __init__(self, path: Path, held: ExitStack) -> None:
        super().__init__(path, held)
        try:  # every file is looked for in this folder, even where another one takes its place meanwhile
            self._folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise unreadable(path, error) from error
        held.callback(os.close, self._folder)
        self._metadata = self._read_metadata()
        self._parts = self._open_parts()
        self.tensors = {
            keys[-1].removeprefix(MODEL_PREFIX): self._stored(name)
            for name, keys in self._metadata.planner_data.items()
            if keys[:2] == ("state", "model")
        }
        if not self.tensors:
            raise InputError(f"'{path}' is not a Composer checkpoint: it has no state with a model in it.")

    def check(self) -> None:
        """See :meth:`Checkpoint.check`."""
        for name, described in self._metadata.state_dict_metadata.items():
            if not hasattr(described, "chunks"):
                self._leaf(name)

    def load(self, *keys: str) -> Any:
        """See :meth:`Checkpoint.load`."""
        prefix = ("state", *keys)
        paths = {name: path for name, path in self._metadata.planner_data.items() if path[: len(prefix)] == prefix}
        value: Any = _nested({path: self._leaf(name) for name, path in paths.items()})
        for key in prefix:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def _read_metadata(self) -> SimpleNamespace:
        path = self.path / STRUCTURE
        if not path.is_file():
            raise InputError(
                f"'{self.path}' has no .metadata file: either it is not a sharded checkpoint, or writing it was not "
                "finished. Give the folder of one checkpoint, such as ep0-ba100."
            )
        file = self._hold(HeldFile(path, folder=self._folder))
        content = bytearray(file.size)
        file.read_into(memoryview(content), 0, "the checkpoint's structure")
        return read_structure(path, content)

    def _open_parts(self) -> dict[str, HeldFile]:
        """The files of the folder that hold data, all opened before any is read."""
        ends: dict[str, int] = {}
        for part in self._metadata.storage_data.values():
            ends[part.relative_path] = max(ends.get(part.relative_path, 0), part.offset + part.length)
            if getattr(part, "transform_descriptors", None):
                raise InputError(f"'{self.path}' is compressed, which conversion does not read.")
        allow_open_files(len(ends))
        files = {}
        for name, end in ends.items():
            path = self.path / name
            if path.parent != self.path or not path.is_file():
                raise IncompleteError(
                    f"'{self.path}' lacks its file '{name}'. Copy the whole folder; where every node of the run had a "
                    "disk of its own, the files of all nodes into one."
                )
            files[name] = self._hold(HeldFile(path, folder=self._folder))
            if files[name].size < end:
                raise InputError(f"'{path}' is truncated: it has {files[name].size} bytes of {end}.")
        return files

    def _archive(self, found: SimpleNamespace) -> Archive:
        return self._noted(Archive(self._parts[found.relative_path], offset=found.offset, length=found.length))

    def _slice(self, name: str, offset: tuple[int, ...] | None = None) -> SimpleNamespace:
        """Where the bytes of a leaf or of a tensor's piece lie."""
        found = self._metadata.storage_data.get(_Index(name, offset))
        if found is None:
            raise InputError(f"'{self.path / '.metadata'}' does not say where '{name}' is stored.")
        return found

    def _leaf(self, name: str) -> Any:
        if hasattr(self._metadata.state_dict_metadata[name], "chunks"):
            return self._stored(name).read()
        return self._archive(self._slice(name)).load(fake=False)

    def _stored(self, name: str) -> StoredTensor:
        described = self._metadata.state_dict_metadata[name]
        if not hasattr(described, "chunks"):
            raise InputError(f"'{self.path}' is not a Composer checkpoint: '{name}' is not a tensor.")
        shape, dtype = described.size, described.properties.dtype
        pieces = sorted((self._piece(name, chunk) for chunk in described.chunks), key=lambda piece: piece.start)
        stored = StoredTensor(name, shape, dtype, tuple(pieces))
        edges = [0, *(edge for piece in pieces for edge in (piece.start, piece.stop)), stored.num_rows]
        whole_rows = all(chunk.sizes[1:] == shape[1:] for chunk in described.chunks)
        if not whole_rows or edges[::2] != edges[1::2]:
            raise InputError(
                f"The pieces of '{name}' in '{self.path}' do not add up to its rows. Only checkpoints that shard along "
                "the first axis convert, as FSDP's do."
            )
        return stored

    def _piece(self, name: str, chunk: SimpleNamespace) -> Piece:
        archive = self._archive(self._slice(name, chunk.offsets))
        tensor = archive.load(fake=True)
        dtype = self._metadata.state_dict_metadata[name].properties.dtype
        if not isinstance(tensor, Tensor) or (tuple(tensor.shape), tensor.dtype) != (chunk.sizes, dtype):
            raise InputError(
                f"'{archive.file.path}' and '{self.path / '.metadata'}' do not agree on '{name}': "
                "not of one checkpoint."
            )
        return archive.locate(tensor, start=chunk.offsets[0] if chunk.offsets else 0)


def read_structure(path: Path, content: bytes | bytearray) -> SimpleNamespace:
    """What ``.metadata`` says: ``planner_data``, ``state_dict_metadata`` and ``storage_data``, see the module.

    Args:
        path: for messages.
        content: of the file.

    Raises:
        InputError: it is damaged, or would have to run code to be read.
    """
    try:
        found: SimpleNamespace = _Unpickler(path, file=io.BytesIO(content)).load()
        _check_form(found)
    except InputError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise InputError(f"'{path}' is truncated or damaged, or not of a checkpoint that Composer wrote.") from error
    return found


def _check_form(metadata: SimpleNamespace) -> None:
    """Raise some exception unless a ``.metadata`` is whole: it has no checksum, but says most things twice."""
    if metadata.planner_data.keys() != metadata.state_dict_metadata.keys():
        raise ValueError("leaves without a path")
    for name, path in metadata.planner_data.items():
        if ".".join(map(str, path)) != name:
            raise ValueError("a leaf with another path")
    places = sorted((part.relative_path, part.offset, part.length) for part in metadata.storage_data.values())
    if any(start < 0 or length <= 0 for _, start, length in places):
        raise ValueError("a slice before the file or without bytes")
    for (file, start, length), (other, following, _) in pairwise(places):
        if file == other and start + length > following:
            raise ValueError("two leaves in one place")


def _nested(leaves: Mapping[tuple[str | int, ...], Any]) -> Any:
    """Dicts and lists from the paths of their leaves: keys are strings, places in a list are numbers."""
    root: dict[Any, Any] = {}
    for path, value in leaves.items():
        node = root
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value

    def with_lists(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        made = {key: with_lists(value) for key, value in node.items()}
        return [made[key] for key in sorted(made)] if any(isinstance(key, int) for key in made) else made

    return with_lists(root)
