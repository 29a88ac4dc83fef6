"""Results as one Markdown table, with published figures of public models below where tasks are the same."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmshearing.downstream.published import PUBLISHED, SOURCE
from llmshearing.downstream.suites import SUITES, is_share


def published_rows(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Published figures of the tasks that a suite has by the paper's name, shots and metric.

    Args:
        tasks: by name ``task`` (lm-eval's name), ``shots``, ``metric`` and ``averaged``, as in the results.

    Returns:
        By model ``num_parameters``, ``tokens``, ``scores`` (shares, by task) and ``average``: over the averaged tasks
        of the suite, where all of them are published; nothing where no task is.
    """
    of_paper = {entry.name: (entry.task, entry.shots, entry.metric) for entry in SUITES["paper"].entries}
    same = [name for name, task in tasks.items() if of_paper.get(name) == (task["task"], task["shots"], task["metric"])]
    averaged = [name for name, task in tasks.items() if task["averaged"]]
    rows = {}
    for row in PUBLISHED:
        scores = {name: row.scores[name] / 100 for name in same if name in row.scores}
        whole = scores.keys() >= set(averaged)
        rows[row.model] = {
            "num_parameters": row.num_parameters,
            "tokens": row.tokens,
            "scores": scores,
            "average": average({name: scores[name] for name in averaged}) if whole else None,
        }
    return {model: row for model, row in rows.items() if row["scores"]}


def average(scores: Mapping[str, float]) -> float | None:
    """The mean over tasks; ``None`` of none."""
    return statistics.mean(scores.values()) if scores else None


def table_of(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]], list[str]]:
    """What a table of what :func:`~llmshearing.downstream.evaluate.downstream` returns shows.

    Shares are in percent. Shots stand behind the name of a task, and its metric where that is not ``acc``.

    Returns:
        The headings, a row for each model and then each published one, and notes to stand below.
    """
    tasks = found["tasks"]
    header = ["model", "parameters", "tokens", *(_heading(name, task) for name, task in tasks.items()), "average"]
    names = _short_names(list(found["models"]))
    rows, notes = [], []
    for model, entry in found["models"].items():
        scores = {name: entry["results"][name]["metrics"][task["metric"]] for name, task in tasks.items()}
        rows.append(_row(names[model], entry, scores, tasks))
    if found["limit"] is not None:
        notes.append(f"Of each task {found['limit']} questions at most: for a look, and not to be compared.")
    elif published := published_rows(tasks):
        rows += [_row(f"{model} *", entry, entry["scores"], tasks) for model, entry in published.items()]
        notes.append(f"* as published: {SOURCE}; averages are over the tasks shown.")
    return header, rows, notes


def markdown(found: Mapping[str, Any]) -> str:
    """The table as Markdown; see :func:`table_of`."""
    header, rows, notes = table_of(found)
    widths = [max(len(row[place]) for row in [header, *rows]) for place in range(len(header))]
    lines = [_line(row, widths) for row in (header, ["-" * width for width in widths], *rows)]
    return "\n".join([*lines, *(part for note in notes for part in ("", note.replace("*", "\\*")))]) + "\n"


def _heading(name: str, task: Mapping[str, Any]) -> str:
    details = [str(task["shots"])] * bool(task["shots"]) + [task["metric"]] * (task["metric"] != "acc")
    return f"{name} ({', '.join(details)})" if details else name


def _row(
    name: str, entry: Mapping[str, Any], scores: Mapping[str, float], tasks: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    counts = [count_of(entry.get(key)) for key in ("num_parameters", "tokens")]
    cells = [score_of(scores.get(task), tasks[task]["metric"]) for task in tasks]
    return [name, *counts, *cells, score_of(entry["average"], "acc")]


def score_of(value: float | None, metric: str) -> str:
    """A metric as a cell: in percent with a digit, or in four digits."""
    if value is None:
        return ""
    return f"{100 * value:.1f}" if is_share(metric) else f"{value:.4g}"


def count_of(number: float | None) -> str:
    """A count in three digits, such as 1.35B."""
    if number is None:
        return ""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def _short_names(names: list[str]) -> dict[str, str]:
    """Folders by their last part, where that tells them apart."""
    short = {name: Path(name).name if Path(name).is_dir() else name for name in names}
    return {name: short[name] if list(short.values()).count(short[name]) == 1 else name for name in names}


def _line(cells: list[str], widths: list[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"
