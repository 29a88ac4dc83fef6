"""What conversion needs of a Composer checkpoint, however it is stored.

Checkpoints from others are untrusted: reading one runs none of its code. Their weights stay on disk.
"""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from llmshearing.convert.archive import Archive
from llmshearing.convert.held import HeldFile
from llmshearing.convert.stored import StoredTensor
from llmshearing.errors import InputError

log = logging.getLogger(__name__)

MODEL_PREFIX = "model."  # HuggingFaceModel keeps the Hugging Face model in its attribute `model`


class Checkpoint(ABC):
    """A checkpoint that is open for reading.

    Args:
        path: the file or folder.
        held: closes its files.

    Attributes:
        path: the file or folder.
        tensors: the model's tensors by Hugging Face name.
    """

    path: Path
    tensors: dict[str, StoredTensor]

    def __init__(self, path: Path, held: ExitStack) -> None:
        self.path = path
        self._held = held
        self._files: list[HeldFile] = []
        self._warned = False

    def check_unchanged(self) -> None:
        """Refuse what was read if it may be of two checkpoints.

        Raises:
            InputError: a file was written to since it was opened.
        """
        for file in self._files:
            file.check_unchanged()

    def _hold(self, file: HeldFile) -> HeldFile:
        self._held.callback(file.close)
        self._files.append(file)
        return file

    def _noted(self, archive: Archive) -> Archive:
        if not archive.has_checksums and not self._warned:
            self._warned = True
            log.warning("'%s' was saved without checksums: whether it is damaged cannot be told.", self.path)
        return archive

    @abstractmethod
    def check(self) -> None:
        """Read everything but tensors, which opening may have left for later.

        Raises:
            InputError: it is damaged, or would have to run code to be read.
        """

    @abstractmethod
    def load(self, *keys: str) -> Any:
        """The content at ``state[keys[0]][keys[1]]...`` with its tensors in memory, ``None`` where there is none.

        Raises:
            InputError: it is damaged, or would have to run code to be read.
        """

    def algorithms(self) -> dict[str, Any]:
        """The saved states of Composer algorithms by class name."""
        return self._mapping(self.load("algorithms") or [])

    def algorithm(self, name: str) -> dict[str, Any] | None:
        """The saved state of a Composer algorithm by class name, or ``None``."""
        return self.algorithms().get(name)

    def dataset(self) -> dict[str, Any]:
        """The saved state of the training dataset; empty where there is none."""
        return self._mapping(self.load("dataset_state", "train") or {})

    def huggingface(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The model's Hugging Face config and the tokenizer's files, as Composer's HuggingFaceModel saved them.

        Raises:
            InputError: the checkpoint has none.
        """
        config = self.load("integrations", "huggingface", "model", "config", "content")
        if not config:
            raise InputError(
                f"'{self.path}' holds no Hugging Face config; only checkpoints of a HuggingFaceModel convert."
            )
        tokenizer = self.load("integrations", "huggingface", "tokenizer") or {}
        return self._mapping(config), self._mapping(tokenizer)

    def generation(self) -> dict[str, Any] | None:
        """The model's generation config, as :class:`~llmshearing.models.llama.ComposerLlama` saved it, or ``None``.

        Raises:
            InputError: it has another form.
        """
        content = self.load("integrations", "huggingface", "model", "generation_config", "content")
        if content is None:
            return None
        try:
            return self._mapping(json.loads(content))
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"'{self.path}' holds a generation config of another form.") from error

    def _mapping(self, value: Any) -> dict[str, Any]:
        try:
            return dict(value)
        except (TypeError, ValueError) as error:
            raise InputError(f"'{self.path}' is not a Composer checkpoint: its state has another form.") from error
