"""Downstream tasks during training, as a Composer callback."""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer.core import Callback, Event, State
from composer.core.precision import get_precision_context
from composer.loggers import Logger
from composer.models import HuggingFaceModel
from composer.utils import create_interval_scheduler, dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

from llmshearing.arguments import whole
from llmshearing.downstream.evaluate import evaluate_task
from llmshearing.downstream.suites import read_suite
from llmshearing.downstream.table import average
from llmshearing.downstream.tasks import LoadedTask, load_tasks, require_lm_eval
from llmshearing.errors import InputError
from llmshearing.schema import Time, unfit

log = logging.getLogger(__name__)

_INTERVAL = Time("ba", "sp", "tok", "dur")


class DownstreamEvaluation(Callback):
    """Evaluates the model on a suite of downstream tasks, every so often and at the end of training.

    On all ranks, which share out the questions, at the end of a batch and before its checkpoint: a run that goes on
    from there does not evaluate it again. Training is not touched: modes and random states are put back, so losses are
    the same to the last bit. While masks are on the model, the masked model is evaluated. Needs lm-eval.

    Logs ``downstream/<task>/<metric>`` for every metric of every task, and ``downstream/average``: the mean over tasks
    of those that a table shows.

    Args:
        suite: ``paper``, ``quick``, a file, or a folder of prepared data, see docs/downstream.md.
        interval: how often, as a time in batches, samples, tokens, or a share of the run.
        limit: questions of each task at most; all if ``None``.
        eval_batch_size: sequences of a forward pass on each rank.

    Raises:
        InputError: a setting is wrong or lm-eval is not installed; or at the beginning of training a task cannot be
            had, or generates text, which sharded weights do not support.
    """

    def __init__(
        self, suite: str | Path, *, interval: str = "1000ba", limit: int | None = None, eval_batch_size: int = 8
    ) -> None:
        require_lm_eval()
        if not isinstance(suite, (str, Path)) or not str(suite):
            raise InputError(f"suite is {suite!r}; it must be paper, quick, a file or a folder of prepared data.")
        if not _INTERVAL.fits(interval):
            raise unfit("interval", interval, _INTERVAL)
        if limit is not None:
            whole("limit", limit, "it must be a whole number from 1 on, or be left out", least=1)
        whole("eval_batch_size", eval_batch_size, "it must be a whole number from 1 on", least=1)
        self.suite, self.limit, self.eval_batch_size = read_suite(suite), limit, eval_batch_size
        self._is_due = create_interval_scheduler(
            interval, checkpoint_events=False, include_end_of_training=True, final_events={Event.BATCH_END}
        )
        self._tasks: list[LoadedTask] = []
        self._lm: Any = None

    def fit_start(self, state: State, logger: Logger) -> None:
        """Load the tasks, before the first batch."""
        model = inner(state)
        if model.tokenizer is None:
            raise InputError("Downstream tasks need the model's tokenizer: give it to the HuggingFaceModel.")
        tokenizer = copy.deepcopy(model.tokenizer)  # lm-eval may give it a token to pad with
        from llmshearing.downstream.lm import SharedLM, Trained

        with _random_states_kept():
            self._tasks = load_tasks(self.suite, tokenizer)
            generating = [task.name for task in self._tasks if task.generates]
            if generating and dist.get_world_size() > 1 and is_sharded(model):
                raise InputError(
                    f"Task '{generating[0]}' generates text, for which ranks with sharded weights would wait for each "
                    "other without end. Leave it out, or evaluate it with python -m llmshearing.downstream."
                )
            device = state.device.tensor_to_device(torch.empty(0)).device
            with _modes_kept(model):
                self._lm = SharedLM(
                    Trained(model, device), tokenizer, batch_size=self.eval_batch_size, even=True, quiet=True
                )

    def batch_end(self, state: State, logger: Logger) -> None:
        """Evaluate, where it is time."""
        if not self._is_due(state, Event.BATCH_END):
            return
        model = inner(state)
        found: dict[str, float] = {}
        precision = get_precision_context(state.precision, state.precision_config)
        with _random_states_kept(), _modes_kept(model), precision:
            model.eval()
            for task in self._tasks:
                result = evaluate_task(self._lm, task, limit=self.limit, errors=False)
                found |= {f"downstream/{task.name}/{name}": value for name, value in result["metrics"].items()}
        shown = {task.name: found[f"downstream/{task.name}/{task.metric}"] for task in self._tasks if task.averaged}
        if (mean := average(shown)) is not None:
            found["downstream/average"] = mean
        logger.log_metrics(found)


def inner(state: State) -> HuggingFaceModel:
    """The Composer model, also where DDP is around it.

    Raises:
        InputError: it is of another kind.
    """
    model: Any = state.model
    model = getattr(model, "module", model)
    if not isinstance(model, HuggingFaceModel):
        raise InputError(f"DownstreamEvaluation needs a composer.models.HuggingFaceModel, got {type(model).__name__}.")
    return model


def is_sharded(model: nn.Module) -> bool:
    """Whether ranks hold parts of the weights, under FSDP2 or FSDP1."""
    return any(isinstance(module, (FSDPModule, FullyShardedDataParallel)) for module in model.modules())


@contextmanager
def _modes_kept(model: nn.Module) -> Iterator[None]:
    """Put every module back into training or evaluation mode, as it was."""
    before = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def _random_states_kept() -> Iterator[None]:
    """Put all generators back; lm-eval seeds them."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)
        if mps is not None:
            torch.mps.set_rng_state(mps)
