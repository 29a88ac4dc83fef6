"""Evaluate models on a suite: what is cached is taken, the rest is computed a task at a time and kept at once."""

from __future__ import annotations

import logging
import math
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmshearing.arguments import whole
from llmshearing.downstream.cache import ResultCache
from llmshearing.downstream.models import Candidate, candidates, tokens_by_model
from llmshearing.downstream.suites import read_suite
from llmshearing.downstream.table import average
from llmshearing.downstream.tasks import SEED, LoadedTask, load_tasks, require_lm_eval
from llmshearing.errors import InputError
from llmshearing.models.loading import default_dtype
from llmshearing.ranks import rank, shared, world_size

log = logging.getLogger(__name__)

_RESAMPLES = 200  # for the standard errors of what is no mean, such as a perplexity
_FORMAT = 1  # of cached results


def downstream(
    models: Sequence[str],
    suite: str | Path,
    *,
    limit: int | None = None,
    batch_size: int | str | None = None,
    dtype: str | None = None,
    parallelize: bool = False,
    tokens: Sequence[float] | None = None,
    cache: str | Path | None = None,
) -> dict[str, Any]:
    """Evaluate models, one in memory at a time; all are checked, and all tasks loaded, before the first.

    Runs on the GPU if there is one. With a process group, every rank holds the model and takes a share of the
    questions; all ranks must call this, and get the same.

    Args:
        models: Hugging Face folders or hub ids; the tokenizer of the first is that of prepared data.
        suite: see :func:`~llmshearing.downstream.suites.read_suite`.
        limit: questions of each task at most; all if ``None``.
        batch_size: sequences of a forward pass, or ``'auto'``: the largest that fits, which is the default on a GPU;
            on a CPU, 8.
        dtype: of weights and activations; bfloat16 on a GPU and float32 on a CPU unless given.
        parallelize: spread one model over the GPUs of this machine.
        tokens: that each model was trained on, for the table.
        cache: folder of results; ``None``: nothing is kept.

    Returns:
        ``suite``, ``lm_eval`` (its version), ``dtype``, ``limit``; ``tasks`` with ``task`` (lm-eval's name), ``shots``,
        ``metric`` and ``averaged``; ``models`` with ``num_parameters``, ``tokens`` where given, ``results`` (by task
        ``metrics``, ``stderr``, ``num_questions``) and ``average``, that of the averaged tasks' metrics.

    Raises:
        InputError: a model, the suite or a task cannot be had, or they do not fit together; or a result is not finite.
    """
    _check(limit, batch_size, parallelize)
    models = list(dict.fromkeys(models))
    counted = tokens_by_model(models, tokens)
    chosen = read_suite(suite)
    require_lm_eval()
    checked = candidates(models)
    tasks = load_tasks(chosen, checked[0].tokenizer)
    kept = ResultCache(cache) if cache is not None else None
    if batch_size is None:
        batch_size = "auto" if torch.cuda.is_available() else 8
    found: dict[str, Any] = {}
    for model in checked:
        results = _results(model, tasks, kept, limit, batch_size, default_dtype(dtype), parallelize)
        found[model.name] = {
            "num_parameters": model.num_parameters,
            **({"tokens": counted[model.name]} if counted else {}),
            "results": results,
            "average": average(
                {task.name: results[task.name]["metrics"][task.metric] for task in tasks if task.averaged}
            ),
        }
    return {
        "suite": chosen.name,
        "lm_eval": version("lm_eval"),
        "dtype": default_dtype(dtype),
        "limit": limit,
        "tasks": {
            task.name: {
                "task": task.lm_eval_name,
                "shots": task.shots,
                "metric": task.metric,
                "averaged": task.averaged,
            }
            for task in tasks
        },
        "models": found,
    }


def _check(limit: int | None, batch_size: int | str | None, parallelize: bool) -> None:
    if limit is not None:
        whole("--limit", limit, "evaluate a question of each task at least", least=1)
    if batch_size not in (None, "auto"):
        whole("--batch-size", batch_size, "a batch has a sequence at least; or say auto", least=1)
    if parallelize and not torch.cuda.is_available():
        raise InputError("--parallelize spreads a model over GPUs, and there is none here. Leave it out.")
    if parallelize and world_size() > 1:
        raise InputError("--parallelize is for one process: leave it out, or start without a launcher.")


def _results(
    model: Candidate,
    tasks: Sequence[LoadedTask],
    kept: ResultCache | None,
    limit: int | None,
    batch_size: int | str,
    dtype: str,
    parallelize: bool,
) -> dict[str, dict[str, Any]]:
    """By task, from the cache or computed."""
    keys = {task.name: _key(model, task, limit, dtype) for task in tasks} if kept and model.identity else {}
    first = rank() == 0
    cached = shared({name: kept.get(key) if kept else None for name, key in keys.items()} if first else None)
    found = {name: result for name, result in cached.items() if result is not None}
    if found:
        log.info("%s: %d of %d tasks are taken from the cache.", model.name, len(found), len(tasks))
    if missing := [task for task in tasks if task.name not in found]:
        lm = _lm(model, batch_size, dtype, parallelize)
        for task in missing:
            log.info("%s: %s", model.name, task.name)
            result = evaluate_task(lm, task, limit=limit)
            for name, value in result["metrics"].items():
                if not math.isfinite(value):
                    raise InputError(
                        f"{name} of task '{task.name}' is {value} for '{model.name}'. Try --dtype float32, or leave "
                        "the task out."
                    )
            if kept and keys and first:
                kept.put(keys[task.name], result)
            found[task.name] = result
    return {task.name: found[task.name] for task in tasks}


def _key(model: Candidate, task: LoadedTask, limit: int | None, dtype: str) -> dict[str, Any]:
    """All that decides a result, but for the rounding of batches of other sizes."""
    return {
        "format": _FORMAT,
        "model": model.identity,
        "task": task.lm_eval_name,
        "definition": task.definition,
        "shots": task.shots,
        "limit": limit,
        "dtype": dtype,
        "seed": SEED,
        "lm_eval": version("lm_eval"),
    }


def _lm(model: Candidate, batch_size: int | str, dtype: str, parallelize: bool) -> Any:
    from lm_eval.models.huggingface import HFLM

    from llmshearing.downstream.lm import SharedLM

    if parallelize:
        return HFLM(pretrained=model.name, dtype=dtype, batch_size=batch_size, parallelize=True)
    return SharedLM(model.load(dtype=dtype), model.tokenizer, batch_size=batch_size)


def evaluate_task(lm: Any, task: LoadedTask, *, limit: int | None, errors: bool = True) -> dict[str, Any]:
    """One task, with lm-eval's own seeds; of a process group all ranks must call it, and get the same.

    Args:
        lm: lm-eval's model.
        task: of :func:`~llmshearing.downstream.tasks.load_tasks`.
        limit: questions at most.
        errors: whether standard errors are wanted.

    Returns:
        ``metrics`` and ``stderr`` by lm-eval's names, and ``num_questions``.
    """
    from lm_eval.evaluator import evaluate

    for each in task.task_dict["tasks"].values():
        each.set_fewshot_seed(seed=SEED)
    random.seed(0)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    begin = time.monotonic()
    with _in_process(), redirect_stdout(sys.stderr):  # lm-eval prints the batch size that it has found
        resamples = _RESAMPLES if errors else 0
        results = evaluate(lm, task.task_dict, limit=limit, bootstrap_iters=resamples, log_samples=False)
    return dict(shared(_result(results, task, time.monotonic() - begin) if results is not None else None))


def _result(results: Any, task: LoadedTask, seconds: float) -> dict[str, Any]:
    metrics, errors = _named(results["results"][task.lm_eval_name])
    number = sum(results["n-samples"][name]["effective"] for name in task.task_dict["tasks"])
    log.info("%s: %s %.4g, %.0f s", task.name, task.metric, metrics[task.metric], seconds)
    return {"metrics": metrics, "stderr": errors, "num_questions": number}


@contextmanager
def _in_process() -> Iterator[None]:
    """Let lm-eval resample here, and not in as many processes as there are cores, forked off one that trains."""
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        yield
    finally:
        os.environ.pop("DISABLE_MULTIPROC")
        if before is not None:
            os.environ["DISABLE_MULTIPROC"] = before


def _named(result: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics and standard errors; lm-eval's ``metric,filter`` without the filter where there is one alone."""
    filters = {key.split(",", 1)[1] for key in result if "," in key}
    found: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for key, value in result.items():
        if "," not in key or not isinstance(value, (int, float)):
            continue
        metric, by = key.split(",", 1)
        kind = metric.endswith("_stderr")
        name = metric.removesuffix("_stderr") + ("" if len(filters) == 1 else f",{by}")
        found[kind][name] = float(value)
    return found
