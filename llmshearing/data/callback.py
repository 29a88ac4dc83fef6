"""Composer glue of dynamic batch loading: losses in, next round's proportions out."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from llmshearing.data import settings
from llmshearing.data.dataset import DynamicStreamingDataset
from llmshearing.data.evaluation import METRIC
from llmshearing.data.preflight import (
    check_duration,
    check_evaluators,
    check_loader,
    check_names,
    report_cache,
    report_exhaustion,
)
from llmshearing.data.proportions import effective_domains, excess_losses, update_proportions
from llmshearing.errors import InputError, unknown_name
from llmshearing.fileio import read_json

log = logging.getLogger(__name__)

_EVAL_PREFIXES = ("", "eval/")  # LLM Foundry labels its evaluators eval/<name>


class DynamicBatchLoading(Callback):
    """Moves the training mix towards the domains that lag behind their reference losses.

    At the end of each of the dataset's rounds it reads the evaluation loss of every domain, applies
    :func:`~llmshearing.data.proportions.update_proportions` and hands the result to the
    :class:`~llmshearing.data.dataset.DynamicStreamingDataset`. That needs one evaluator per domain, labelled by its
    name, that runs at least whenever a round ends. All state is the dataset's.

    Logs at each round's edge: ``data/proportion/<domain>``, ``data/loss/<domain>``, ``data/reference_loss/<domain>``,
    ``data/difference/<domain>``, ``data/effective_domains``, ``data/samples/<domain>``, ``data/passes/<domain>``.

    Args:
        reference_losses: nats per token for each domain, or the path of a JSON file that has them under ``losses``.
            Not needed with ``update_type='constant'``.
        update_type: ``doremi``: Algorithm 1 of the paper. ``constant``: the proportions stay as they are; no
            evaluation is needed.
        clip, eta, smoothing, floor, max_change: see ``update_proportions``; ``floor`` may be given by domain.

    Raises:
        InputError: settings are wrong, or at the beginning of training they do not fit the dataset and evaluators.
    """

    def __init__(
        self,
        reference_losses: Mapping[str, float] | str | Path | None = None,
        *,
        update_type: str = "doremi",
        clip: bool = True,
        eta: float = 1.0,
        smoothing: float = 1e-4,
        floor: float | Mapping[str, float] = 0.0,
        max_change: float | None = None,
    ) -> None:
        if update_type not in ("doremi", "constant"):
            raise unknown_name("update_type", update_type, ("doremi", "constant"))
        if update_type == "doremi" and reference_losses is None:
            raise InputError("update_type 'doremi' needs reference_losses; see python -m llmshearing.reference_loss.")
        self.reference_losses = _read_losses(reference_losses)
        self.update_type = update_type
        self.floor = floor
        self._settings: dict[str, Any] = {"clip": clip, "eta": eta, "smoothing": smoothing, "max_change": max_change}
        for key, value in floor.items() if isinstance(floor, Mapping) else [("", floor)]:
            settings.number(f"floor.{key}" if key else "floor", value, most=1)
        update_proportions([1.0], [0.0], [0.0], **self._settings)  # refuses wrong settings now, not after a round
        self._losses: dict[str, float] = {}

    def after_load(self, state: State, logger: Logger) -> None:
        """Refuse a duration in epochs, before Composer does with an error of its own."""
        check_duration(state)

    def fit_start(self, state: State, logger: Logger) -> None:
        """Check that every part fits before the first batch, and say which domains can run out."""
        dataset = training_dataset(state)
        check_loader(state, dataset)
        sample = int(state.timestamp.sample_in_epoch)
        if dataset.rounds.start != sample:  # another fit() in this process
            dataset.load_state_dict(dataset.state_dict(sample))
        if sample:  # Composer would skip the batches that it thinks the dataset repeats
            state.dataset_resumption["train"] = True
        dataset.rounds.open()
        if self.update_type == "constant":
            dataset.rounds.hold()
        else:
            check_names("reference losses", self.reference_losses, dataset.domains)
            for domain in self.floor if isinstance(self.floor, Mapping) else ():
                if domain not in dataset.domains:
                    raise unknown_name("domain in floor", domain, dataset.domains)
            check_evaluators(state, dataset)
            self._updated(
                dataset, sample, self.reference_losses
            )  # refuses floors that do not fit now, not after a round
        report_exhaustion(state, dataset)
        report_cache(dataset)
        if not sample:  # a resumed run has logged what it stands at
            self._log_use(state, logger, dataset)

    def eval_before_all(self, state: State, logger: Logger) -> None:
        """Forget the last evaluation."""
        self._losses = {}

    def eval_end(self, state: State, logger: Logger) -> None:
        """Take one domain's loss."""
        label = state.dataloader_label or ""
        if METRIC in state.eval_metrics.get(label, {}):
            self._losses[label] = float(state.eval_metrics[label][METRIC].compute())

    def eval_after_all(self, state: State, logger: Logger) -> None:
        """At the end of a round: set the next one's proportions."""
        dataset = training_dataset(state)
        sample = int(state.timestamp.sample_in_epoch)
        if self.update_type == "constant" or sample != dataset.rounds.at(sample).end:
            return
        losses = {domain: self._loss(domain) for domain in dataset.domains}
        updated = self._updated(dataset, sample, losses)
        dataset.rounds.update(updated)
        for domain, loss in losses.items():
            reference = self.reference_losses[domain]
            logger.log_metrics(
                {
                    f"data/loss/{domain}": loss,
                    f"data/reference_loss/{domain}": reference,
                    f"data/difference/{domain}": float(excess_losses(loss, reference, clip=self._settings["clip"])),
                }
            )

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """After the evaluations: log at a round's edge, stop where data ran out, and miss no update."""
        dataset = training_dataset(state)
        sample = int(state.timestamp.sample_in_epoch)
        plan = dataset.rounds.at(sample)
        if sample not in (plan.begin, plan.end):
            return
        assert state.max_duration is not None
        if sample == plan.end and state.timestamp < state.max_duration:
            dataset.rounds.wait_for(sample)  # or raise
        self._log_use(state, logger, dataset)
        if dataset.on_exhausted == "stop" and (domains := dataset.exhausts(plan)):
            if dist.get_global_rank() == 0:
                log.warning("Training stops: the next round would repeat samples of %s.", ", ".join(domains))
            state.stop_training()

    def fit_end(self, state: State, logger: Logger) -> None:
        """Let waiting workers go."""
        training_dataset(state).rounds.close()

    def close(self, state: State, logger: Logger) -> None:
        """Leave no shared memory behind."""
        if isinstance(dataset := getattr(state.train_dataloader, "dataset", None), DynamicStreamingDataset):
            dataset.unlink()

    def _loss(self, domain: str) -> float:
        for prefix in _EVAL_PREFIXES:
            if (loss := self._losses.get(prefix + domain)) is not None:
                if not math.isfinite(loss):
                    raise InputError(f"The evaluation loss of domain '{domain}' is {loss}; its proportion is unknown.")
                return loss
        raise InputError(
            f"Domain '{domain}' was not evaluated at the end of the round; evaluated were {sorted(self._losses)}. "
            "Give its evaluator the same eval_interval as the others."
        )

    def _updated(self, dataset: DynamicStreamingDataset, sample: int, losses: Mapping[str, float]) -> list[float]:
        floor: Any = self.floor
        if isinstance(floor, Mapping):
            floor = [floor.get(domain, 0.0) for domain in dataset.domains]
        updated = update_proportions(
            dataset.rounds.at(sample).proportions,
            [losses[domain] for domain in dataset.domains],
            [self.reference_losses[domain] for domain in dataset.domains],
            floor=floor,
            **self._settings,
        )
        # Ranks on unlike hardware could round differently, and must not plan differently.
        agreed = [updated.tolist()]
        dist.broadcast_object_list(agreed, src=0)
        return agreed[0]

    def _log_use(self, state: State, logger: Logger, dataset: DynamicStreamingDataset) -> None:
        sample = int(state.timestamp.sample_in_epoch)
        plan, used = dataset.rounds.at(sample), dataset.samples_used(sample)
        passes = np.array(list(used.values())) / dataset.samples_per_stream
        logger.log_metrics({"data/effective_domains": effective_domains(plan.proportions)})
        for index, domain in enumerate(dataset.domains):
            logger.log_metrics(
                {
                    f"data/proportion/{domain}": plan.proportions[index],
                    f"data/samples/{domain}": used[domain],
                    f"data/passes/{domain}": float(passes[index]),
                }
            )


def _read_losses(source: Mapping[str, float] | str | Path | None) -> dict[str, float]:
    losses: Any = {} if source is None else source
    if isinstance(source, (str, Path)):
        content = read_json(source)
        losses = content.get("losses") if isinstance(content, dict) else None
        if not isinstance(losses, dict):
            raise InputError(
                f"'{source}' has no 'losses' by domain, as python -m llmshearing.reference_loss writes them."
            )
    settings.by_domain("reference_losses", losses, "{web: 2.1, books: 2.4}, or as the path of a file that has them")
    for domain, loss in losses.items():
        settings.number(f"reference_losses.{domain}", loss)
    return dict(losses)


def training_dataset(state: State) -> DynamicStreamingDataset:
    """The dataset behind the trainer's training data.

    Raises:
        InputError: it is not a ``DynamicStreamingDataset``.
    """
    dataset = getattr(state.train_dataloader, "dataset", None)
    if not isinstance(dataset, DynamicStreamingDataset):
        raise InputError(
            f"DynamicBatchLoading needs a DynamicStreamingDataset to steer, but the training data is "
            f"{type(dataset).__name__}. Set train_loader.name to dynamic_streaming, or remove the callback."
        )
    return dataset
