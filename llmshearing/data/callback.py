"""Composer glue of dynamic batch loading: losses in, next round's proportions out."""

from __future__ import annotations

import inspect
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from numpy.typing import NDArray

from llmshearing.data import settings
from llmshearing.data.arguments import read_reference_losses
from llmshearing.data.dataset import DynamicStreamingDataset
from llmshearing.data.evaluation import METRIC
from llmshearing.data.forecast import MIN_ROUNDS, ado_proportions, learning_preference, predicted_references
from llmshearing.data.history import LossHistory
from llmshearing.data.preflight import (
    check_duration,
    check_evaluators,
    check_loader,
    check_names,
    last_batch,
    report_cache,
    report_exhaustion,
)
from llmshearing.data.proportions import effective_domains, excess_losses, update_proportions, within_limits
from llmshearing.errors import InputError, unknown_name

log = logging.getLogger(__name__)

UPDATE_TYPES = ("doremi", "ado", "constant")
_ADO_FLOOR = 0.01  # delta_min of its paper
_EVAL_PREFIXES = ("", "eval/")  # LLM Foundry labels its evaluators eval/<name>


class DynamicBatchLoading(Callback):
    """Moves the training mix towards the domains that lag behind their reference losses.

    At the end of each of the dataset's rounds it reads the evaluation loss of every domain, applies
    :func:`~llmshearing.data.proportions.update_proportions` or, for ``ado``,
    :func:`~llmshearing.data.forecast.ado_proportions` and hands the result to the
    :class:`~llmshearing.data.dataset.DynamicStreamingDataset`. That needs one evaluator per domain, labelled by its
    name, that runs at least whenever a round ends. Its state is the losses so far, where a rule looks back on them;
    all other is the dataset's.

    Logs at each round's edge: ``data/proportion/<domain>``, ``data/loss/<domain>``, ``data/reference_loss/<domain>``
    and ``data/difference/<domain>`` (``ado``: ``data/preference/<domain>``), ``data/effective_domains``,
    ``data/samples/<domain>``, ``data/passes/<domain>``.

    Args:
        reference_losses: nats per token for each domain, or the path of a JSON file that has them under ``losses``.
            Needed for ``doremi`` alone, and with ``predict_references`` not even there.
        update_type: ``doremi``: Algorithm 1 of the paper. ``ado``: domains by how fast their loss falls (arXiv
            2410.11820). ``constant``: the proportions stay as they are; no evaluation is needed.
        predict_references: with ``doremi``: from the fourth round on take the loss that each domain is on its way to,
            where that is below its reference or there is none (arXiv 2411.14055).
        clip: with ``doremi``: count a domain below its reference as on it, as the paper does.
        eta: with ``doremi``: step size; the paper's is 1.
        smoothing: with ``doremi``: share of the whole that is distributed evenly.
        floor: the least share of any domain, or of each by its name. ``None``: 0, with ``ado`` its authors' 0.01.
        max_change: the most that a share moves in one update. ``None``: no limit.

    Raises:
        InputError: settings are wrong, or at the beginning of training they do not fit the dataset and evaluators.
    """

    def __init__(
        self,
        reference_losses: Mapping[str, float] | str | Path | None = None,
        *,
        update_type: str = "doremi",
        predict_references: bool = False,
        clip: bool = True,
        eta: float = 1.0,
        smoothing: float = 1e-4,
        floor: float | Mapping[str, float] | None = None,
        max_change: float | None = None,
    ) -> None:
        if update_type not in UPDATE_TYPES:
            raise unknown_name("update_type", update_type, UPDATE_TYPES)
        settings.flag("predict_references", predict_references)
        if update_type == "doremi" and reference_losses is None and not predict_references:
            raise InputError(
                "update_type 'doremi' needs reference_losses; see python -m llmshearing.reference_loss. Or set "
                "predict_references, or update_type to ado."
            )
        self.reference_losses = read_reference_losses(reference_losses)
        self.update_type = update_type
        self.predict_references = predict_references
        self.floor = (_ADO_FLOOR if update_type == "ado" else 0.0) if floor is None else floor
        self._max_change = max_change
        self._algorithm_1: dict[str, Any] = {"clip": clip, "eta": eta, "smoothing": smoothing}
        for key, value in self.floor.items() if isinstance(self.floor, Mapping) else [("", self.floor)]:
            settings.number(f"floor.{key}" if key else "floor", value, most=1)
        # Refuses wrong settings now, not after a round.
        update_proportions([1.0], [0.0], [0.0], max_change=max_change, **self._algorithm_1)
        if update_type != "doremi":
            _refuse_algorithm_1(update_type, {"predict_references": predict_references, **self._algorithm_1})
        self._losses: dict[str, float] = {}
        self._history = LossHistory()
        self.saves_history = True  # not while a sharded checkpoint is loaded that has none, see llmshearing.resume

    def after_load(self, state: State, logger: Logger) -> None:
        """Refuse a duration in epochs, before Composer does with an error of its own."""
        self.saves_history = True
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
            self.check_domains(dataset.domains)
            check_evaluators(state, dataset)
            self._begin_history(sample, dataset)
        report_exhaustion(state, dataset)
        report_cache(dataset)
        if not sample:  # a resumed run has logged what it stands at
            self._log_use(state, logger, dataset)

    def check_domains(self, domains: Sequence[str]) -> None:
        """Check that references and floors fit the ``domains`` of the training data, before a round depends on it.

        Raises:
            InputError: a domain is missing or unknown, or the floors sum to more than 1.
        """
        if self.update_type == "doremi" and (self.reference_losses or not self.predict_references):
            check_names("reference losses", self.reference_losses, domains)
        for domain in self.floor if isinstance(self.floor, Mapping) else ():
            if domain not in domains:
                raise unknown_name("domain in floor", domain, domains)
        even = [1 / len(domains)] * len(domains)
        within_limits(even, even, floor=self._floors(domains))

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
        losses = [self._loss(domain) for domain in dataset.domains]
        current = dataset.rounds.at(sample).proportions
        self._history.add(sample, losses, current)
        limits = {"floor": self._floors(dataset.domains), "max_change": self._max_change}
        metrics = {"loss": losses}
        if self.update_type == "ado":
            known = self._history
            preference = learning_preference(known.prior, current, known.samples, known.losses)
            known.preferences[-1] = preference.tolist()
            updated = ado_proportions(known.prior, known.preferences, current, **limits)
            metrics["preference"] = preference.tolist()
        else:
            references = self._references(state, dataset)
            updated = update_proportions(current, losses, references, **limits, **self._algorithm_1)
            metrics["reference_loss"] = references.tolist()
            metrics["difference"] = excess_losses(losses, references, clip=self._algorithm_1["clip"]).tolist()
        # Ranks on unlike hardware could round differently, and must not plan differently.
        agreed = [updated.tolist()]
        dist.broadcast_object_list(agreed, src=0)
        dataset.rounds.update(agreed[0])
        for name, values in metrics.items():
            logger.log_metrics(
                {f"data/{name}/{domain}": value for domain, value in zip(dataset.domains, values, strict=True)}
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

    def state_dict(self) -> dict[str, Any]:
        """The losses so far, where the rule looks back on them; plain types under one key."""
        return {"history": json.dumps(self._history.state_dict())} if self._looks_back and self.saves_history else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`; of a rule that did not look back it has nothing."""
        if self._looks_back and "history" in state:
            self._history = LossHistory.from_state_dict(json.loads(state["history"]))

    @property
    def _looks_back(self) -> bool:
        return self.update_type == "ado" or self.predict_references

    def _begin_history(self, sample: int, dataset: DynamicStreamingDataset) -> None:
        self._history.cut(sample)
        if self._looks_back and not self._history.samples and sample >= dataset.rounds.at(sample).size:
            log.warning(
                "The checkpoint has no losses of earlier rounds; %s wants %d and leaves the mix alone until then.",
                "ado" if self.update_type == "ado" else "predict_references",
                MIN_ROUNDS,
            )

    def _references(self, state: State, dataset: DynamicStreamingDataset) -> NDArray[np.float64]:
        given = [self.reference_losses[domain] for domain in dataset.domains] if self.reference_losses else None
        if not self.predict_references:
            return np.asarray(given, np.float64)
        end = last_batch(state, dataset) * dataset.global_batch_size
        return predicted_references(self._history.samples, self._history.losses, end, given)

    def _floors(self, domains: Sequence[str]) -> Any:
        if isinstance(self.floor, Mapping):
            return [self.floor.get(domain, 0.0) for domain in domains]
        return self.floor

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


def _refuse_algorithm_1(update_type: str, given: Mapping[str, Any]) -> None:
    """Refuse settings that a rule does not have, rather than leave them without effect."""
    defaults = {name: value.default for name, value in inspect.signature(DynamicBatchLoading).parameters.items()}
    for name, value in given.items():
        if value != defaults[name]:
            raise InputError(
                f"{name}: {value!r} is of update_type 'doremi' and has no effect with '{update_type}'. Leave it out."
            )


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
