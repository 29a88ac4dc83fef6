"""Per-domain evaluation in which every sequence counts exactly once, on any number of ranks."""

from __future__ import annotations

import os
from collections.abc import Iterable

from composer.core import DataSpec, Evaluator
from composer.utils import dist
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from llmshearing.data.arguments import check_folders, check_hash
from llmshearing.data.domain import DomainDataset
from llmshearing.data.settings import whole
from llmshearing.errors import InputError

METRIC = "LanguageCrossEntropy"


def build_domain_dataloader(
    tokenizer: PreTrainedTokenizerBase | None,
    device_batch_size: int,
    local: str,
    *,
    remote: str | None = None,
    seq_len: int | None = None,
    num_workers: int = 0,
    validate_hash: str | None = None,
) -> DataSpec:
    """One domain's evaluation data, with the arguments that LLM Foundry passes to a registered data loader.

    Args:
        tokenizer: the model's; token ids must be within its vocabulary. ``None``: not checked.
        device_batch_size: sequences per rank and batch.
        local: MDS folder of the domain, or where to put what ``remote`` has.
        remote: where to fetch shards from.
        seq_len: tokens per sequence, checked. ``None``: as the data has it.
        num_workers: DataLoader processes per rank.
        validate_hash: hash algorithm to check fetched shards with; the data must have been written with it.

    Raises:
        InputError: there is no such data, it has no sequences, or they do not fit.
    """
    whole("device_batch_size", device_batch_size, least=1)
    whole("num_workers", num_workers)
    check_hash(validate_hash)
    if seq_len is not None:
        whole("seq_len", seq_len, least=1)
    check_folders("local", local, ())
    if remote is not None:
        check_folders("remote", remote, ())
    data = DomainDataset(
        os.path.basename(os.path.normpath(local)),
        local,
        remote=remote,
        seq_len=seq_len,
        vocab_size=None if tokenizer is None else len(tokenizer),
        validate_hash=validate_hash,
    )
    sampler = dist.get_sampler(data, drop_last=False, shuffle=False)
    return DataSpec(DataLoader(data, batch_size=device_batch_size, sampler=sampler, num_workers=num_workers))


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
    check_folders("local", local, ())
    if remote is not None:
        check_folders("remote", remote, ())
    for domain in domains:
        loader = build_domain_dataloader(
            tokenizer,
            batch_size,
            os.path.join(local, domain),
            remote=remote and os.path.join(remote, domain),
            seq_len=seq_len,
            num_workers=num_workers,
            validate_hash=validate_hash,
        )
        evaluators.append(evaluator(domain, loader, eval_interval))
    return evaluators


def evaluator(label: str, loader: DataSpec, eval_interval: str | None = None) -> Evaluator:
    """What measures ``LanguageCrossEntropy`` on ``loader``; see :func:`build_evaluators`."""
    try:
        return Evaluator(label=label, dataloader=loader, metric_names=[METRIC], eval_interval=eval_interval)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"eval_interval: {eval_interval!r} is not a time ({error}). Set it to one, such as 50ba."
        ) from error
