"""A checkpoint that ``torch.save`` wrote to one file."""

from __future__ import annotations

import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map_only

from llmshearing.convert.archive import Archive
from llmshearing.convert.checkpoint import MODEL_PREFIX, Checkpoint
from llmshearing.convert.held import HeldFile, Slice
from llmshearing.convert.stored import StoredTensor
from llmshearing.errors import InputError


class SingleFile(Checkpoint):
    """A monolithic checkpoint. Opening it reads only its structure; every tensor stays on disk."""

    def __init__(self, path: Path, held: ExitStack) -> None:
        super().__init__(path, held)
        file = self._hold(HeldFile(path))
        if not zipfile.is_zipfile(Slice(file, 0, file.size)):
            raise InputError(f"'{path}' is not a checkpoint: truncated, compressed, or not written by torch.save.")
        self._archive = self._noted(Archive(file))
        content = self._archive.load(fake=True)
        state = content.get("state") if isinstance(content, dict) else None
        model = state.get("model") if isinstance(state, dict) else None
        if not isinstance(model, dict) or not all(
            isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in model.items()
        ):
            raise InputError(f"'{path}' is not a Composer checkpoint: it has no state with a model in it.")
        self._state: dict[str, Any] = state or {}
        self.tensors = {
            name: self._stored(name, tensor)
            for name, tensor in ((key.removeprefix(MODEL_PREFIX), tensor) for key, tensor in model.items())
        }

    def check(self) -> None:
        """See :meth:`Checkpoint.check`: opening left nothing for later."""

    def load(self, *keys: str) -> Any:
        """See :meth:`Checkpoint.load`."""
        value: Any = self._state
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return tree_map_only(Tensor, lambda tensor: self._stored(".".join(keys), tensor).read(), value)

    def _stored(self, name: str, placeholder: Tensor) -> StoredTensor:
        piece = self._archive.locate(placeholder)
        return StoredTensor(name, tuple(placeholder.shape), placeholder.dtype, (piece,))
