"""Models as lm-eval's ``LM``. Importing this imports lm-eval."""

from __future__ import annotations

from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import distributed, nn
from transformers import PreTrainedTokenizerBase


class SharedLM(HFLM):
    """A model in memory; with a process group, every rank takes its share of the questions.

    lm-eval hands out the questions, evens out their number over ranks, and gathers the results, by the four methods
    that it has for this.

    Args:
        model: a causal LM, or a :class:`Trained`.
        tokenizer: the model's.
        batch_size: sequences of a forward pass, or ``'auto'``.
        even: let every rank make the same number of forward passes, as sharded weights need it.
        quiet: show no progress of them.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int | str,
        even: bool = False,
        quiet: bool = False,
    ) -> None:
        # Without the cache, questions that differ in the last token alone are not computed together on some ranks.
        super().__init__(
            pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size, logits_cache=not even
        )
        if distributed.is_available() and distributed.is_initialized():
            self._rank, self._world_size = distributed.get_rank(), distributed.get_world_size()
        self._quiet = quiet

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """See lm-eval."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm or self._quiet)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """See lm-eval."""
        return super().generate_until(requests, disable_tqdm=disable_tqdm or self._quiet)

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Of every rank, in the order of ranks; a number becomes a vector."""
        if self.world_size == 1:
            return tensor
        own = tensor.reshape(-1).contiguous()
        parts = [torch.empty_like(own) for _ in range(self.world_size)]
        distributed.all_gather(parts, own)
        return torch.cat(parts)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            distributed.barrier()


class Trained(nn.Module):
    """The model inside a Composer model, called as Composer's own evaluation calls it, so that FSDP sees the call.

    Nothing about it changes: what lm-eval does to a model that it takes over (``tie_weights``) does nothing here.

    Args:
        composer_model: a :class:`~composer.models.HuggingFaceModel`.
        device: that it computes on.
    """

    def __init__(self, composer_model: Any, device: torch.device) -> None:
        super().__init__()
        self.composer_model = composer_model
        self.config = composer_model.model.config
        self.device = device
        self.name_or_path = str(getattr(self.config, "name_or_path", ""))

    def forward(self, input_ids: torch.Tensor) -> Any:
        """Output with logits (batch, length, vocabulary) of token ids (batch, length)."""
        return self.composer_model.forward({"input_ids": input_ids})

    def generate(self, **settings: Any) -> Any:
        """As ``transformers`` does."""
        return self.composer_model.model.generate(**settings)

    def tie_weights(self) -> None:
        """Leave the weights as they are."""
