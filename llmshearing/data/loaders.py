"""Training data as a Composer trainer takes it, from the plain settings of a recipe."""

from __future__ import annotations

import atexit
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from composer.core import DataSpec
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from llmshearing.data.dataset import DynamicStreamingDataset


class DynamicDataLoader(DataLoader):
    """A DataLoader that knows the rounds of its :class:`DynamicStreamingDataset`.

    Asking for a batch of a round whose proportions nobody has set is an error at once, where a plain DataLoader would
    only notice through its workers' timeout; and workers that wait for a plan are let go when iteration ends.
    """

    dataset: DynamicStreamingDataset

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Batches without end."""
        sample = self.dataset.rounds.open(watched=True)
        batches = super().__iter__()
        # At interpreter exit torch waits for its workers before anything registered earlier runs.
        atexit.register(self.dataset.rounds.close)
        try:
            while True:
                self.dataset.rounds.require(sample)
                if (batch := next(batches, None)) is None:
                    return
                sample += self.dataset.global_batch_size
                yield batch
        finally:
            self.dataset.rounds.close()
            atexit.unregister(self.dataset.rounds.close)


def build_dynamic_streaming_dataloader(
    tokenizer: PreTrainedTokenizerBase | None,
    device_batch_size: int,
    dataset: Mapping[str, Any],
    *,
    num_workers: int = 2,
    drop_last: bool = True,
    pin_memory: bool | None = None,
    prefetch_factor: int = 2,
    persistent_workers: bool = True,
    timeout: float = 0.0,
) -> DataSpec:
    """The training data of a recipe, with the arguments that LLM Foundry passes to a registered data loader.

    Args:
        tokenizer: the model's; token ids must be within its vocabulary. ``None``: as ``dataset.vocab_size`` says.
        device_batch_size: samples per rank and batch.
        dataset: keyword arguments of :class:`DynamicStreamingDataset`, without ``batch_size``.
        num_workers: DataLoader processes per rank; 0 reads in the training process.
        drop_last: has no effect, since the data has no end and every batch is full.
        pin_memory: see torch's DataLoader. ``None``: where there is a GPU.
        prefetch_factor: batches that each worker prepares ahead.
        persistent_workers: see torch's DataLoader.
        timeout: seconds to wait for a batch, 0 for ever.
    """
    settings = dict(dataset)
    if tokenizer is not None:
        settings.setdefault("vocab_size", len(tokenizer))
    workers: dict[str, Any] = (
        {"prefetch_factor": prefetch_factor, "persistent_workers": persistent_workers} if num_workers else {}
    )
    loader = DynamicDataLoader(
        DynamicStreamingDataset(**settings, batch_size=device_batch_size),
        batch_size=device_batch_size,
        num_workers=num_workers,
        drop_last=drop_last,
        pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
        timeout=timeout,
        **workers,
    )
    return DataSpec(dataloader=loader)
