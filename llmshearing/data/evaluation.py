"""Per-domain evaluation in which every sequence counts exactly once, on any number of ranks."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
import torch
from composer.core import Evaluator
from composer.utils import dist
from streaming import Stream
from streaming.base.world import World
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from llmshearing.data.arguments import check_folders, check_hash, opens
from llmshearing.data.cache import fetch
from llmshearing.data.opening import process_group
from llmshearing.data.settings import whole
from llmshearing.data.shards import ShardBounds, check_index
from llmshearing.data.tokens import TokenDecoder, check_columns
from llmshearing.errors import InputError

METRIC = "LanguageCrossEntropy"


class EvalDataset(Dataset):
    """The sequences of one domain's eval split, by index; all of it is fetched when it is opened.

    Iterating a ``StreamingDataset`` on several ranks repeats samples so that all ranks get the same number. A dataset
    with a length instead lets Composer drop the sampler's padding, so the mean is over each sequence once.

    Args:
        domain: name, for messages.
        local: MDS folder, or where to put what ``remote`` has.
        remote: where to fetch shards from. ``None``: all are in ``local``.
        seq_len: tokens per sample, checked. ``None``: as the data has it.
        vocab_size: token ids must be below it. ``None``: not checked.
        validate_hash: hash algorithm to check fetched shards with; the data must have been written with it.

    Raises:
        InputError: there is no such data, or it does not fit.
    """

    def __init__(
        self,
        domain: str,
        local: str,
        *,
        remote: str | None = None,
        seq_len: int | None = None,
        vocab_size: int | None = None,
        validate_hash: str | None = None,
    ) -> None:
        with opens(f"eval split of domain '{domain}' in {local!r}, remote {remote!r}"):
            stream = Stream(
                local=local,
                remote=remote,
                download_retry=2,
                download_timeout=60.0,
                validate_hash=validate_hash,
                keep_zip=False,
            )
            check_index(stream)
            self._shards = stream.get_shards(World.detect(), allow_unsafe_types=False)
        with process_group():
            if dist.get_local_rank() == 0:
                for shard in self._shards:
                    fetch(stream, shard)
            dist.barrier()
        sizes = np.array([shard.samples for shard in self._shards], np.int64)
        if not sizes.sum():
            raise InputError(f"Domain '{domain}' has no evaluation samples in '{local}'.")
        self._bounds, self._length, self._domain = ShardBounds(sizes), int(sizes.sum()), domain
        seq_len = check_columns(self._shards, domain, seq_len=seq_len, vocab_size=vocab_size)
        self._decode = TokenDecoder(seq_len=seq_len, vocab_size=vocab_size)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        shard, place = self._bounds[index]
        return self._decode(self._shards[shard][place], f"Eval sample {index} of domain '{self._domain}'")


def build_evaluators(
    local: str,
    domains: Iterable[str],
    *,
    batch_size: int,
    remote: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    seq_len: int | None = None,
    eval_interval: str | None = None,
    num_workers: int = 0,
    validate_hash: str | None = None,
) -> list[Evaluator]:
    """One Composer ``Evaluator`` per domain, labelled by the domain, with the metric ``LanguageCrossEntropy``.

    The metric is the mean over all predicted tokens of the domain, whatever the batch size and the ranks: Composer sums
    losses and tokens over microbatches and ranks before dividing.

    Args:
        local: folder with one MDS folder per domain.
        domains: which domains.
        batch_size: sequences per rank and batch.
        remote: where to fetch shards from, in the same form.
        tokenizer: the model's; token ids must be within its vocabulary. ``None``: not checked.
        seq_len: tokens per sequence, checked. ``None``: as the data has it.
        eval_interval: such as ``50ba``. ``None``: the trainer's.
        num_workers: DataLoader processes per rank.
        validate_hash: hash algorithm to check fetched shards with; the data must have been written with it.

    Raises:
        InputError: a domain has no evaluation samples, or its samples do not fit.
    """
    evaluators = []
    if isinstance(domains, str) or not isinstance(domains, Iterable):
        raise InputError(f"domains: {domains!r} is not a list of names. Write it as [web, books].")
    whole("batch_size", batch_size, least=1)
    whole("num_workers", num_workers)
    check_hash(validate_hash)
    if seq_len is not None:
        whole("seq_len", seq_len, least=1)
    check_folders("local", local, ())
    if remote is not None:
        check_folders("remote", remote, ())
    for domain in domains:
        data = EvalDataset(
            domain,
            os.path.join(local, domain),
            remote=remote and os.path.join(remote, domain),
            seq_len=seq_len,
            vocab_size=None if tokenizer is None else len(tokenizer),
            validate_hash=validate_hash,
        )
        sampler = dist.get_sampler(data, drop_last=False, shuffle=False)
        loader = DataLoader(data, batch_size=batch_size, sampler=sampler, num_workers=num_workers)
        try:
            evaluator = Evaluator(label=domain, dataloader=loader, metric_names=[METRIC], eval_interval=eval_interval)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"eval_interval: {eval_interval!r} is not a time ({error}). Set it to one, such as 50ba."
            ) from error
        evaluators.append(evaluator)
    return evaluators
