"""The tasks of a suite as lm-eval holds them, all loaded before anything is evaluated."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import PreTrainedTokenizerBase

from llmshearing.downstream.local import rows_of_data, rows_of_file, task_config
from llmshearing.downstream.suites import Entry, Suite
from llmshearing.errors import InputError, one_line, unknown_name
from llmshearing.models.hub import is_reachable

SEED = 1234  # lm-eval's own default
# What lm-eval says of models and data that it is handed in memory, as we do.
_EXPECTED = ("already-initialized model", "`pretrained` model kwarg is not of type", "Custom kwargs can be passed")


@dataclass(frozen=True)
class LoadedTask:
    """A task that can be evaluated.

    Attributes:
        name: of the column.
        lm_eval_name: of the task or group whose results count.
        shots: examples before each question.
        metric: that of the table.
        averaged: whether it counts in the average.
        definition: all that decides its questions, as a digest.
        task_dict: what ``lm_eval.evaluator.evaluate`` takes.
        generates: whether it asks for generated text, and not for likelihoods alone.
    """

    name: str
    lm_eval_name: str
    shots: int
    metric: str
    averaged: bool
    definition: str
    task_dict: Any
    generates: bool


def require_lm_eval() -> None:
    """Find out whether lm-eval is installed, and let it say only what matters.

    Raises:
        InputError: it is not.
    """
    if find_spec("lm_eval") is None:
        raise InputError("Downstream tasks need lm-eval: pip install 'llmshearing[eval]'.")
    logger = logging.getLogger("lm_eval")
    logger.setLevel(logging.WARNING)
    for name in ("lm_eval.models.huggingface", "lm_eval.api.task"):
        emitter = logging.getLogger(name)  # filters are not inherited
        if _unexpected not in emitter.filters:
            emitter.addFilter(_unexpected)


def _unexpected(record: logging.LogRecord) -> bool:
    return not any(part in record.getMessage() for part in _EXPECTED)


def load_tasks(suite: Suite, tokenizer: PreTrainedTokenizerBase) -> list[LoadedTask]:
    """Load all tasks, with their data, local ones first since they fail fastest.

    Args:
        suite: of :func:`~llmshearing.downstream.suites.read_suite`.
        tokenizer: that of prepared data.

    Raises:
        InputError: a task is unknown, lacks its metric, cannot be had, or two have one name.
    """
    local = {entry: _local_tasks(entry, tokenizer) for entry in suite.entries if entry.task is None}
    manager = _manager() if len(local) < len(suite.entries) else None
    for entry in suite.entries:  # names before data
        if entry.task is not None:
            _check_name(entry.task, manager)
    loaded = [
        task
        for entry in suite.entries
        for task in (local[entry] if entry in local else [_lm_eval_task(entry, manager)])
    ]
    for place, task in enumerate(loaded):
        if any(task.name == other.name for other in loaded[:place]):
            raise InputError(f"Two tasks of suite '{suite.name}' are called '{task.name}'. Give one another name.")
    return loaded


def _local_tasks(entry: Entry, tokenizer: PreTrainedTokenizerBase) -> list[LoadedTask]:
    if entry.data is not None:
        sets = {f"{entry.name}_{domain}": rows for domain, rows in rows_of_data(entry, tokenizer).items()}
        delimiter = ""
    else:
        assert entry.file is not None
        sets, delimiter = {entry.name: rows_of_file(entry.file, entry.kind)}, " "
    loaded = []
    for name, rows in sets.items():
        if entry.shots >= len(rows):
            raise InputError(
                f"'{name}' has {len(rows)} questions, too few for {entry.shots} shots before each. Lower `shots`."
            )
        config = task_config(name, rows, kind=entry.kind, shots=entry.shots, delimiter=delimiter)
        definition = _digest([entry.kind, delimiter, rows])
        from lm_eval.api.task import ConfigurableTask

        task_dict = {"tasks": {name: ConfigurableTask(config=config)}}
        loaded.append(_loaded(entry, name, name, task_dict, definition))
    return loaded


@functools.cache
def _manager() -> Any:
    """lm-eval's index of its tasks: ten seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _check_name(name: str, manager: Any) -> None:
    if Path(name).suffix in (".yaml", ".yml"):
        if not Path(name).is_file():
            raise InputError(f"There is no file '{name}' that defines a task.")
    elif name not in manager.task_index:
        near = get_close_matches(name, manager.all_tasks, n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise InputError(f"lm-eval has no task '{name}'.{hint} `lm-eval ls tasks` lists all.")


def _lm_eval_task(entry: Entry, manager: Any) -> LoadedTask:
    assert entry.task is not None
    with _downloads(entry.task):
        task_dict = manager.load([entry.task])
    names = [*task_dict.get("groups", {}), *task_dict["tasks"]]
    single = entry.task if entry.task in names else names[0]
    if entry.task not in names and len(task_dict["tasks"]) != 1:
        raise InputError(f"'{entry.task}' is only a tag of {', '.join(names[:5])}: name the tasks that you want.")
    for task in task_dict["tasks"].values():
        task.set_config("num_fewshot", entry.shots)
    return _loaded(entry, entry.name, single, task_dict, _digest(_definition(task_dict)))


@contextmanager
def _downloads(name: str) -> Iterator[None]:
    """Fetch a task's data, or take what is in the cache where there is no network, without minutes of tries."""
    import datasets
    import huggingface_hub

    reachable = is_reachable()
    places = ((datasets.config, "HF_HUB_OFFLINE"), (huggingface_hub.constants, "HF_HUB_OFFLINE"))
    before = [getattr(module, key) for module, key in places]
    try:
        for module, key in places if not reachable else ():
            setattr(module, key, True)
        yield
    except Exception as error:  # what the data's files and scripts make their readers stumble over
        if not reachable and _is_of_network(error):
            raise InputError(
                f"The data of task '{name}' is not on this machine, and {huggingface_hub.constants.ENDPOINT} cannot be "
                "reached. Run this once where it can be, or take a suite of local tasks: see docs/downstream.md."
            ) from error
        reason = one_line(error)[:300] or type(error).__name__
        raise InputError(f"Task '{name}' cannot be loaded: {reason}") from error
    finally:
        for (module, key), value in zip(places, before, strict=True):
            setattr(module, key, value)


def _is_of_network(error: BaseException | None) -> bool:
    """Whether a library gave up on what it could not fetch, whatever else it made of that."""
    while error is not None:
        if isinstance(error, (ConnectionError, LocalEntryNotFoundError)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _loaded(entry: Entry, name: str, lm_eval_name: str, task_dict: Any, definition: str) -> LoadedTask:
    tasks, group = task_dict["tasks"], task_dict.get("groups", {}).get(lm_eval_name)
    for task_name, task in tasks.items():
        for flag, what in (("UNSAFE_CODE", "runs code that a model writes"), ("MULTIMODAL", "is not of text alone")):
            if getattr(task, flag, False):
                raise InputError(f"Task '{task_name}' {what}, which is not supported. Leave it out.")
    if group is None:
        metrics = list(tasks[lm_eval_name].aggregation())
    else:
        metrics = [each.metric for each in group.aggregate_metric_list or ()]
        if not metrics:
            raise InputError(f"The group '{lm_eval_name}' has no result of its own: name the tasks that you want.")
    if entry.metric not in metrics:
        raise unknown_name(f"metric of task '{name}'", entry.metric, metrics)
    generates = any(task.OUTPUT_TYPE == "generate_until" for task in tasks.values())
    return LoadedTask(name, lm_eval_name, entry.shots, entry.metric, entry.averaged, definition, task_dict, generates)


def _definition(task_dict: Any) -> list[Any]:
    """The configs and the fingerprints of the data of an lm-eval task or group."""
    found = []
    for name, task in sorted(task_dict["tasks"].items()):
        splits = getattr(task, "dataset", None) or {}
        prints = {split: getattr(splits[split], "_fingerprint", "") for split in splits}
        found.append([name, task.VERSION, task.dump_config(), prints])
    return found


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
