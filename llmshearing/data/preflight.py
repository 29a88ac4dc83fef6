"""What can be known to go wrong before the first batch."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Mapping
from types import SimpleNamespace

import numpy as np
from composer.core import Event, State, TimeUnit
from composer.utils import dist

from llmshearing.data.dataset import DynamicStreamingDataset
from llmshearing.data.evaluation import METRIC
from llmshearing.errors import InputError, unknown_name

log = logging.getLogger(__name__)


def check_names(kind: str, values: Mapping[str, float], domains: Iterable[str]) -> None:
    """Check that ``values`` has one finite number for each domain and for nothing else.

    Raises:
        InputError: a name is missing or unknown, or its number is not finite.
    """
    domains = list(domains)
    for name, value in values.items():
        if name not in domains:
            raise unknown_name(f"domain in {kind}", name, domains)
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise InputError(f"The {kind} give {value!r} for domain '{name}', not a number.")
    for domain in domains:
        if domain not in values:
            raise InputError(f"The {kind} lack domain '{domain}'; they have {', '.join(sorted(values))}.")


def check_duration(state: State) -> None:
    """Check that training ends: the data is one endless epoch.

    Raises:
        InputError: it would not.
    """
    duration = state.max_duration
    if duration is not None and duration.unit in (TimeUnit.EPOCH, TimeUnit.ITERATION):
        raise InputError(
            f"max_duration: '{duration.to_timestring()}' never comes, since the training data is one endless epoch. "
            "Give it in batches, samples or tokens, such as 3200ba, 1000000sp or 400000000tok."
        )


def check_loader(state: State, dataset: DynamicStreamingDataset) -> None:
    """Check that the trainer takes batches as the dataset lays them out.

    Raises:
        InputError: it does not.
    """
    if state.dataloader_len is not None:
        raise InputError("The training data is one endless epoch. Leave train_subset_num_batches out.")
    batch_size = getattr(state.train_dataloader, "batch_size", None)
    if batch_size != dataset.batch_size:
        raise InputError(
            f"The data loader makes batches of {batch_size} samples, the dataset has {dataset.batch_size} per rank. "
            "Give both the same batch_size."
        )


def check_evaluators(state: State, dataset: DynamicStreamingDataset) -> None:
    """Check that each domain is evaluated whenever a round ends.

    Raises:
        InputError: an evaluator or its metric is missing, or it does not run at the next rounds' ends.
    """
    evaluators = {evaluator.label.removeprefix("eval/"): evaluator for evaluator in state.evaluators}
    check_labels(evaluators, dataset.domains)
    for domain in dataset.domains:
        evaluator = evaluators[domain]
        if METRIC not in state.eval_metrics[evaluator.label]:
            raise InputError(f"The evaluator of domain '{domain}' does not compute {METRIC}.")
        for batch in _round_ends(state, dataset):
            if not _runs_at(evaluator.eval_interval, state, dataset, batch):
                raise InputError(
                    f"Domain '{domain}' is not evaluated at batch {batch}, where a round of {dataset.update_interval} "
                    f"batches ends. Set eval_interval to {dataset.update_interval}ba (update_interval), or to a part "
                    "of it."
                )


def check_labels(labels: Collection[str], domains: Iterable[str]) -> None:
    """Check that every domain of the training data has an evaluator.

    Raises:
        InputError: names the domain.
    """
    for domain in domains:
        if domain not in labels:
            raise InputError(
                f"Domain '{domain}' has no evaluator, so its proportion cannot be updated; evaluators: "
                f"{', '.join(sorted(labels)) or 'none'}. Give eval_loader one, with an eval split of the domain."
            )


def _round_ends(state: State, dataset: DynamicStreamingDataset) -> list[int]:
    """The batches at which the next two rounds end: an interval that meets both meets all."""
    sample = int(state.timestamp.sample_in_epoch)
    left = dataset.rounds.at(sample).end - sample
    first = int(state.timestamp.batch) + left // dataset.global_batch_size
    return [first, first + dataset.update_interval] if left else [first + dataset.update_interval]


def _runs_at(interval: object, state: State, dataset: DynamicStreamingDataset, batch: int) -> bool:
    """Ask Composer's own interval function, with the clock set to ``batch``."""
    if not getattr(interval, "__qualname__", "").startswith("create_interval_scheduler."):
        return True  # the user's own function may look at anything; the round's end will show

    def clock(batch: int) -> object:
        ahead = batch - int(state.timestamp.batch)
        samples = ahead * dataset.global_batch_size
        tokens = samples * (dataset.seq_len or 0)
        return state.timestamp.copy(
            batch=batch, sample=state.timestamp.sample + samples, token=state.timestamp.token + tokens
        )

    assert callable(interval)
    view = SimpleNamespace(
        timestamp=clock(batch),
        previous_timestamp=clock(batch - 1),
        max_duration=state.max_duration,
        dataloader_len=state.dataloader_len,
        get_elapsed_duration=lambda: 0.0,
    )
    return bool(interval(view, Event.BATCH_END))


def report_exhaustion(state: State, dataset: DynamicStreamingDataset) -> None:
    """Log which domains can run out before training ends: under the worst mix, and under the present one.

    Raises:
        InputError: with ``on_exhausted: stop``, the data does not last for one round.
    """
    plan = dataset.rounds.at(int(state.timestamp.sample_in_epoch))
    if dataset.on_exhausted == "stop" and (domains := dataset.exhausts(plan)):
        raise InputError(
            f"Domains {', '.join(domains)} run out within the first round of {plan.size} samples, and on_exhausted is "
            "'stop'. Add data, lower update_interval, or set on_exhausted to 'repeat'."
        )
    if dist.get_global_rank() != 0:
        return
    last = last_batch(state, dataset)
    for index, domain in enumerate(dataset.domains):
        share = plan.proportions[index]
        left = int(dataset.samples_per_stream[index]) - plan.used[index] % int(dataset.samples_per_stream[index])
        present = _batch_at(plan.begin + left / share, dataset) if share else math.inf
        # The worst mix: this round as planned, then nothing but this domain.
        later = max(0, left - int(plan.counts[index]))
        worst = _batch_at(plan.begin + plan.size + later, dataset) if later and not plan.held else present
        if worst < last:
            log.warning(
                "Domain '%s' has %d samples left and can run out from batch %.0f on (at the present proportion: %.0f). "
                "Then: %s.",
                *(domain, left, worst, present, dataset.on_exhausted),
            )


def report_cache(dataset: DynamicStreamingDataset) -> None:
    """Warn of a cache that cannot hold what is shuffled together."""
    limit = dataset.cache_limit
    if limit is None or dist.get_global_rank() != 0:
        return
    assert isinstance(limit, int), "streaming has parsed it"
    shard_bytes = np.array([shard.get_max_size() for shard in dataset.shards])
    domain_bytes = np.add.reduceat(shard_bytes, dataset.shard_offset_per_stream)
    blocks = domain_bytes * np.minimum(1.0, dataset.block_size / dataset.samples_per_stream)
    # A node shuffles together what its sub-streams hold, and no less than a lane's.
    nodes = dataset._unique_rank_world.num_nodes
    needed = blocks.sum() / min(nodes, dataset.rounds.at(dataset.rounds.start).lanes) + sum(
        stream.get_index_size() for stream in dataset.streams
    )
    if needed > limit:
        log.warning(
            "The indexes and the shards that are shuffled together take %.3g bytes, more than cache_limit (%.3g), so "
            "they will be fetched again and again. Raise cache_limit or lower shuffle_block_size.",
            *(needed, limit),
        )


def _batch_at(sample: float, dataset: DynamicStreamingDataset) -> float:
    return sample // dataset.global_batch_size


def last_batch(state: State, dataset: DynamicStreamingDataset) -> float:
    """The batch at which training ends, or infinity where that is not known in advance."""
    assert state.max_duration is not None
    end = float(state.max_duration.value)
    if state.max_duration.unit == TimeUnit.BATCH:
        return end
    if state.max_duration.unit == TimeUnit.SAMPLE:
        return end / dataset.global_batch_size
    if state.max_duration.unit == TimeUnit.TOKEN and dataset.seq_len is not None:
        return end / (dataset.global_batch_size * dataset.seq_len)
    return math.inf
