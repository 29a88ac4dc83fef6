"""Training data as a Composer trainer takes it, from the plain settings of a recipe."""

from __future__ import annotations

import atexit
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from composer.core import DataSpec
from composer.utils import dist
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from llmshearing.data.dataset import DynamicStreamingDataset
from llmshearing.data.settings import flag, number, whole
from llmshearing.errors import InputError, below, unknown_name


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
                self.dataset.rounds.wait_for(sample)  # or raise
                if (batch := next(batches, None)) is None:
                    return
                sample += self.dataset.global_batch_size
                yield batch
        except (ConnectionError, EOFError) as error:  # torch says it of those that end at any other moment
            raise RuntimeError(
                "A data loader's worker was killed by signal or ended while it handed a batch over: see whether memory "
                "is full, or give the loader fewer workers."
            ) from error
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

    Raises:
        InputError: a setting has the wrong type or value, or contradicts the data.
    """
    whole("device_batch_size", device_batch_size, least=1)
    whole("num_workers", num_workers)
    whole("prefetch_factor", prefetch_factor, least=1)
    number("timeout", timeout)
    for key, value in (("drop_last", drop_last), ("persistent_workers", persistent_workers)):
        flag(key, value)
    if pin_memory is not None:
        flag("pin_memory", pin_memory)
    if not isinstance(dataset, Mapping):
        raise InputError(f"dataset: {dataset!r} is not a mapping of settings. Give it local, proportions and the like.")
    settings = dict(dataset)
    _check_names(settings)
    if tokenizer is not None:
        settings.setdefault("vocab_size", len(tokenizer))
    workers: dict[str, Any] = (
        {"prefetch_factor": prefetch_factor, "persistent_workers": persistent_workers} if num_workers else {}
    )
    with below("dataset", settings):
        data = DynamicStreamingDataset(**settings, batch_size=device_batch_size)
    loader = DynamicDataLoader(
        data,
        batch_size=device_batch_size,
        num_workers=num_workers,
        drop_last=drop_last,
        pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
        timeout=timeout,
        **workers,
    )
    group = data.replication or 1
    if group == 1:
        return DataSpec(dataloader=loader)
    # Composer sums samples and tokens over all ranks, of which those of a group have the same ones.
    member = dist.get_global_rank() % group

    def num_tokens(batch: Mapping[str, torch.Tensor]) -> int:
        tokens = batch["input_ids"].numel()
        return tokens * (member + 1) // group - tokens * member // group

    def num_samples(batch: Mapping[str, torch.Tensor]) -> float:
        return len(batch["input_ids"]) / group

    return DataSpec(loader, get_num_samples_in_batch=num_samples, get_num_tokens_in_batch=num_tokens)


def _check_names(settings: Mapping[str, Any]) -> None:
    """Check the names of the dataset's settings, all of which it takes by name."""
    parameters = dict(inspect.signature(DynamicStreamingDataset.__init__).parameters)
    for name in ("self", "batch_size"):
        del parameters[name]
    for name in settings:
        if name not in parameters:
            raise unknown_name("setting of dataset", name, parameters)
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in settings:
            raise InputError(f"dataset has no {name}. Set it; see DynamicStreamingDataset for what it means.")
