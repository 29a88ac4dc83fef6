"""Suites: which tasks, with how many shots, and which metric of each goes into the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llmshearing.copies import name_of
from llmshearing.errors import InputError, one_line, unknown_name
from llmshearing.schema import Boolean, Kind, Number, Text, unfit
from llmshearing.storage import is_remote

KINDS = ("choices", "completion")
#: Metrics that are shares of questions: shown in percent, and averaged.
SHARES = ("acc", "acc_norm", "acc_bytes", "exact_match", "f1")


@dataclass(frozen=True)
class Entry:
    """One line of a suite: a task of lm-eval, a file of questions, or prepared data of which questions are made.

    Args:
        name: heads the column; of prepared data the tasks are ``<name>_<domain>``.
        task: lm-eval's name of a task or group, or the path of a YAML file that defines a task as lm-eval does.
        file: JSON, or JSON lines, of questions.
        data: folder that ``data_prep/prepare.py`` wrote, or its ``eval`` folder.
        kind: ``choices`` or ``completion``, of a file or of prepared data.
        shots: examples before each question.
        metric: lm-eval's name of the one that goes into the table.
        averaged: whether it counts in the average.
        domains: of prepared data; all if empty.
        sequences: of each domain, at equal distances; all if ``None``.
    """

    name: str
    task: str | None = None
    file: str | None = None
    data: str | None = None
    kind: str = "choices"
    shots: int = 0
    metric: str = "acc"
    averaged: bool = True
    domains: tuple[str, ...] = ()
    sequences: int | None = None


@dataclass(frozen=True)
class Suite:
    """Tasks that are looked at together."""

    name: str
    entries: tuple[Entry, ...] = field(default_factory=tuple)


def _of_the_hub(name: str, task: str, shots: int = 0, metric: str = "acc", *, averaged: bool = True) -> Entry:
    return Entry(name, task=task, shots=shots, metric=metric, averaged=averaged)


# Table 2 of Sheared LLaMA (Xia et al., ICLR 2024, arXiv 2310.06694): tasks and shots; no shots where it names none.
# It does not name the metrics of lm-eval; these are the usual ones of these tasks.
_TABLE_2 = (
    _of_the_hub("SciQ", "sciq"),
    _of_the_hub("PIQA", "piqa"),
    _of_the_hub("WinoGrande", "winogrande"),
    _of_the_hub("ARC-E", "arc_easy"),
    _of_the_hub("ARC-C", "arc_challenge", 25, "acc_norm"),
    _of_the_hub("HellaSwag", "hellaswag", 10, "acc_norm"),
    _of_the_hub("LogiQA", "logiqa", 0, "acc_norm"),
    _of_the_hub("BoolQ", "boolq", 32),
    _of_the_hub("LAMBADA", "lambada_openai"),
    _of_the_hub("NQ", "nq_open", 32, "exact_match"),
    _of_the_hub("MMLU", "mmlu", 5),
)
SUITES = {
    # The paper's average is over Table 2, so TruthfulQA stands beside it.
    "paper": Suite("paper", (*_TABLE_2, _of_the_hub("TruthfulQA", "truthfulqa_mc2", averaged=False))),
    "quick": Suite(
        "quick", tuple(entry for entry in _TABLE_2 if entry.name in ("SciQ", "PIQA", "WinoGrande", "ARC-E", "LAMBADA"))
    ),
}

_KEYS: dict[str, Kind] = {
    "name": Text(),
    "task": Text("a task or group of lm-eval, or a YAML file that defines one"),
    "file": Text("a JSON or JSON lines file of questions"),
    "data": Text("a folder that data_prep/prepare.py wrote"),
    "kind": Text(" or ".join(KINDS)),
    "shots": Number(0, 1000),
    "metric": Text("the name of a metric"),
    "averaged": Boolean(),
    "sequences": Number(1),
}
_OF_KIND = {
    "task": {"name", "task", "shots", "metric", "averaged"},
    "file": {"name", "file", "kind", "shots", "metric", "averaged"},
    "data": {"name", "data", "kind", "metric", "averaged", "domains", "sequences"},
}


def is_share(metric: str) -> bool:
    """Whether a metric is a share of questions, shown in percent."""
    return metric.split(",")[0] in SHARES


def read_suite(name: str | Path) -> Suite:
    """A suite by its name; by a YAML or JSON file; or of a folder of prepared data, with both kinds of its questions.

    Raises:
        InputError: there is none of that name, or the file has another form, names the key and the place.
    """
    name = str(name)
    if name in SUITES:
        return SUITES[name]
    path = Path(name)
    if path.is_dir() or is_remote(name):
        return Suite(
            name_of(name) if is_remote(name) else path.resolve().name,
            tuple(Entry(kind, data=name, kind=kind) for kind in KINDS),
        )
    if not path.is_file():
        if path.suffix or len(path.parts) > 1:
            raise InputError(f"There is no file '{name}' of a suite. Give one, or one of {', '.join(SUITES)}.")
        raise unknown_name("suite", name, SUITES)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"'{name}' is neither YAML nor JSON: {one_line(error)}") from error
    return _suite_of(content, name)


def _suite_of(content: Any, path: str) -> Suite:
    example = "tasks: [{task: arc_easy, shots: 0}]"
    if not isinstance(content, Mapping) or not isinstance(content.get("tasks"), list) or not content["tasks"]:
        raise InputError(f"'{path}' is not a suite: it must have a list of tasks, such as {example}.")
    for key in content:
        if key not in ("name", "tasks"):
            raise unknown_name(f"key in '{path}'", str(key), ("name", "tasks"))
    entries = tuple(_entry(given, f"tasks[{place}] of '{path}'") for place, given in enumerate(content["tasks"]))
    return Suite(str(content.get("name") or Path(path).stem), entries)


def _entry(given: Any, where: str) -> Entry:
    """One entry of a file.

    Raises:
        InputError: names where it stands.
    """
    if not isinstance(given, Mapping) or len(sources := [key for key in _OF_KIND if key in given]) != 1:
        raise InputError(f"{where} is {given!r}; it must have one of the keys task, file and data.")
    for key, value in given.items():
        if key not in _OF_KIND[sources[0]]:
            raise unknown_name(f"key in {where}, beside '{sources[0]}',", str(key), _OF_KIND[sources[0]])
        if key == "domains":
            if not (isinstance(value, list) and value and all(isinstance(domain, str) for domain in value)):
                raise InputError(f"{where}: domains is {value!r}; it must be a list of names.")
        elif not _KEYS[key].fits(value):
            raise unfit(f"{where}: {key}", value, _KEYS[key])
    kind = given.get("kind", "choices")
    if kind not in KINDS:
        raise unknown_name(f"kind in {where}", kind, KINDS)
    metric = given.get("metric", "acc")
    fallback = {"task": given.get("task"), "file": Path(str(given.get("file"))).stem, "data": kind}[sources[0]]
    settings = {
        "name": str(fallback),
        "averaged": metric in SHARES,
        **given,
        "domains": tuple(given.get("domains", ())),
    }
    if settings["averaged"] and metric not in SHARES:
        raise InputError(f"{where}: averaged is true, but '{metric}' is no share; averaged are {', '.join(SHARES)}.")
    return Entry(**settings)
