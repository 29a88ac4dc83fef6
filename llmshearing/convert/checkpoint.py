"""Read a Composer checkpoint without running its code and without loading its weights."""

from __future__ import annotations

import datetime
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from llmshearing.errors import InputError

# What a Composer checkpoint holds besides tensors and plain types: times, versions and numpy's random state.
_HARMLESS = [
    torch.torch_version.TorchVersion,
    datetime.timedelta,
    np.dtype,
    np.ndarray,
    np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    *{type(np.dtype(kind)) for kind in ("u1", "u4", "i4", "i8", "f4", "f8")},
]
_MODEL_PREFIX = "model."  # HuggingFaceModel keeps the Hugging Face model in its attribute `model`


class Checkpoint:
    """One checkpoint file. Opening it reads only its structure; tensors are read one at a time from their offsets.

    Args:
        path: a file that Composer saved (``ep0-ba100-rank0.pt``).

    Attributes:
        tensors: the model's tensors by Hugging Face name, as placeholders with shape and dtype; see :meth:`read`.
        state: Composer's state dict, its tensors placeholders too.

    Raises:
        InputError: not a checkpoint, incomplete, or holding objects that would have to run code to be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"There is no checkpoint file '{path}'.")
        if not zipfile.is_zipfile(self.path):
            raise InputError(f"'{path}' is not a checkpoint: truncated, or not written by torch.save.")
        try:
            with torch.serialization.safe_globals(_HARMLESS), FakeTensorMode():
                content = torch.load(self.path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            culprit = str(error).split("GLOBAL ")[-1].split(" ")[0] if "GLOBAL " in str(error) else "an object"
            raise InputError(
                f"'{path}' holds {culprit}, which could run code when read. It is refused; get the checkpoint from "
                "a source you trust and save it with plain tensors."
            ) from error
        except (RuntimeError, EOFError, KeyError) as error:
            raise InputError(f"'{path}' cannot be read as a checkpoint: {error}") from error
        try:
            self.state: dict[str, Any] = content["state"]
            self.tensors: dict[str, Tensor] = {
                name.removeprefix(_MODEL_PREFIX): tensor for name, tensor in self.state["model"].items()
            }
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"'{path}' is not a Composer checkpoint: it has no state with a model in it.") from error

    def read(self, placeholder: Tensor) -> Tensor:
        """The real tensor behind a placeholder of this checkpoint.

        Raises:
            InputError: the file ends early, or values are not finite.
        """
        offset = placeholder.untyped_storage()._checkpoint_offset
        if offset is None or not placeholder.is_contiguous():
            raise InputError(f"'{self.path}' stores a tensor in a layout that conversion does not read.")
        size = placeholder.element_size()
        data = np.fromfile(
            self.path, np.uint8, count=placeholder.numel() * size, offset=offset + placeholder.storage_offset() * size
        )
        if data.size != placeholder.numel() * size:
            raise InputError(f"'{self.path}' ends before its data does: the file is truncated.")
        tensor = torch.from_numpy(data).view(placeholder.dtype).view(placeholder.shape)
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(f"A tensor of shape {tuple(tensor.shape)} in '{self.path}' holds NaN or infinity.")
        return tensor

    def algorithm(self, name: str) -> dict[str, Any] | None:
        """The saved state of a Composer algorithm by class name, or ``None``."""
        return dict(self.state.get("algorithms", [])).get(name)

    def huggingface(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The model's Hugging Face config and the tokenizer's files, as Composer's HuggingFaceModel saved them.

        Raises:
            InputError: the checkpoint has none.
        """
        try:
            saved = self.state["integrations"]["huggingface"]
            return dict(saved["model"]["config"]["content"]), dict(saved.get("tokenizer") or {})
        except (KeyError, TypeError) as error:
            raise InputError(
                f"'{self.path}' holds no Hugging Face config; only checkpoints of a HuggingFaceModel convert."
            ) from error
