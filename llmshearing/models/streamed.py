"""A causal LM whose weights are read when a part of it runs, and dropped after that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from llmshearing.errors import InputError
from llmshearing.models.config import one_line
from llmshearing.models.loading import DTYPE, build_on_meta


class StreamedModel:
    """The parts of a model, see :class:`~llmshearing.pruning.layer_passes.Parts`.

    Args:
        config: the model's.
        read: gives a tensor of the model by its Hugging Face name; a tied head is not asked for.
        device: where parts run.
        dtype: in which they do.

    Attributes:
        model: in eval mode; its parameters have shapes only but for the parts that are held.

    Raises:
        InputError: no model can be made of ``config``.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        read: Callable[[str], Tensor],
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        try:
            options: dict[str, Any] = {DTYPE: dtype}
            self.model = build_on_meta(config, **options).eval()
        except Exception as error:  # what a value is wrong for decides what it raises
            raise InputError(f"No model can be made of the config: {one_line(error)}") from error
        self._read, self._device, self._dtype = read, device, dtype
        self._names = {"lm_head.weight": "model.embed_tokens.weight"} if config.tie_word_embeddings else {}
        for module in self.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))

    @contextmanager
    def held(self, name: str) -> Iterator[nn.Module]:
        """The submodule with its weights."""
        module = self.model.get_submodule(name)
        shapes = {key: parameter.data for key, parameter in module.named_parameters()}
        _put(module, {key: self._tensor(f"{name}.{key}") for key in shapes})
        try:
            yield module
        finally:
            _put(module, shapes)

    def _tensor(self, name: str) -> Tensor:
        return self._read(self._names.get(name, name)).to(self._device, self._dtype)


def _put(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give a module these for its parameters, which no other module shares from then on."""
    for key, tensor in tensors.items():
        place, _, name = key.rpartition(".")
        setattr(module.get_submodule(place), name, nn.Parameter(tensor, requires_grad=False))
