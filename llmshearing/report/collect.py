"""What a run left on disk: its metrics by stage, what shearing kept, and the summary."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass, field
from functools import reduce
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from llmshearing.errors import InputError
from llmshearing.fileio import files_below
from llmshearing.report.records import (
    COMPUTE,
    ENVIRONMENTS,
    read_compute,
    read_downstream,
    read_environments,
    read_shearing,
    read_summary,
)

_RECORDS = {
    "metrics.jsonl", "recipe.yaml", ENVIRONMENTS, COMPUTE, "shearing.json", "summary.json", "downstream.json",
}  # fmt: skip
_LAST_BATCH = 2**53  # beyond it, a float is no longer a whole number
_LARGEST = 1e100  # beyond it, a value cannot be drawn


@dataclass(frozen=True)
class Series:
    """One metric over a stage: ``values[i]`` (float64) after ``batches[i]`` (int64) batches, in ascending order."""

    batches: np.ndarray
    values: np.ndarray

    @property
    def last(self) -> float:
        return float(self.values[-1])

    @property
    def finite(self) -> np.ndarray:
        """The values without NaN and infinities."""
        return self.values[np.isfinite(self.values)]


@dataclass(frozen=True)
class Stage:
    """The metrics of one training run, by their logged names."""

    name: str
    series: dict[str, Series]
    recipe: str = ""  # as it was resolved, in YAML
    environments: list[dict[str, Any]] = field(default_factory=list)  # it ran in
    compute: dict[str, float] = field(default_factory=dict)  # what a token cost, see llmshearing/compute.py
    folder: Path = Path()  # that it lies in

    def group(self, prefix: str, suffix: str = "") -> dict[str, Series]:
        """The series whose names have this beginning and end, by what stands between them."""
        return {
            name[len(prefix) : len(name) - len(suffix)]: series
            for name, series in sorted(self.series.items())
            if name.startswith(prefix) and name.endswith(suffix) and len(name) > len(prefix) + len(suffix)
        }

    def losses(self) -> dict[str, Series]:
        """Evaluation loss by domain."""
        evaluated = self.group("metrics/", "/LanguageCrossEntropy")
        if "data/proportion/train" not in self.series:  # then it is a domain's name
            evaluated.pop("train", None)  # Composer's label for the training batches
        # LLM Foundry labels the evaluator of a domain eval/<domain>.
        by_domain = {label.removeprefix("eval/"): series for label, series in evaluated.items()}
        return by_domain or self.group("data/loss/")

    def mean_loss(self) -> Series | None:
        """The mean of the domains' evaluation losses, at batches after which all were evaluated."""
        losses = list(self.losses().values())
        if not losses:
            return None
        batches = reduce(np.intersect1d, [series.batches for series in losses])
        rows = [series.values[np.searchsorted(series.batches, batches)] for series in losses]
        return Series(batches, np.mean(rows, axis=0)) if len(batches) else None

    @property
    def num_batches(self) -> int:
        return max(int(series.batches[-1]) for series in self.series.values())

    def not_finite(self) -> dict[str, tuple[int, int]]:
        """By metric: how many of its values are NaN or infinite, and the batch of the first."""
        found = {}
        for name, series in self.series.items():
            broken = np.flatnonzero(~np.isfinite(series.values))
            if len(broken):
                found[name] = (len(broken), int(series.batches[broken[0]]))
        return found


@dataclass(frozen=True)
class Run:
    """Everything that a report shows; each distinct ``shearing.json`` stands with the folders that hold it."""

    name: str
    stages: list[Stage]
    shearings: list[tuple[list[str], dict[str, Any]]]
    summary: dict[str, Any]
    downstream: dict[str, Any] = field(default_factory=dict)  # what llmshearing.downstream wrote

    def domains(self) -> list[str]:
        """Every domain that appears anywhere, sorted, so that each keeps its colour throughout the report."""
        found: set[str] = set()
        for stage in self.stages:
            found |= stage.losses().keys() | stage.group("data/proportion/").keys() | stage.group("data/passes/").keys()
        for losses in self.summary.get("eval_loss", {}).values():
            found |= losses.keys() - {"mean"}
        return sorted(found)


def read_metrics(path: Path) -> dict[str, Series]:
    """Read a ``metrics.jsonl``; lines of the same batch are merged, the later one wins.

    Raises:
        InputError: a line is not a metrics record.
    """
    values: dict[str, dict[int, float]] = defaultdict(dict)
    # A last line without its end is still being written, or was when the run was killed.
    lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            batch = record.pop("batch")
            if type(batch) is not int or not 0 <= batch <= _LAST_BATCH:
                raise ValueError(f"batch {batch!r}")
            for key, value in record.items():
                point = float(value)  # also reads the strings "nan", "inf" and "-inf"
                values[key][batch] = math.copysign(math.inf, point) if abs(point) > _LARGEST else point
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise InputError(
                f"Line {number} of '{path}' is not a record of a metrics log ({error!r}). Remove the line."
            ) from error
    return {
        key: Series(np.array(sorted(by_batch)), np.array([by_batch[batch] for batch in sorted(by_batch)]))
        for key, by_batch in values.items()
    }


def is_record(name: str) -> bool:
    """Whether a file below a run's folder is one of those that a report is made of."""
    return name.rpartition("/")[2] in _RECORDS


def collect(folder: str | Path) -> Run:
    """Read a run's folder.

    ``metrics.jsonl``, with ``recipe.yaml`` and ``environment.json`` beside it, is looked for in the folder, in ``*/``
    and in ``stages/*/``, ``shearing.json`` anywhere below, ``summary.json`` and ``downstream.json`` in the folder.

    Raises:
        InputError: no metrics are found, or a file cannot be read.
    """
    root = Path(folder)
    name = root.resolve().name
    stages = []
    paths = (sorted(root.glob(f"{pattern}metrics.jsonl")) for pattern in ("", "*/", "stages/*/"))
    for path in chain.from_iterable(paths):
        if path.is_file() and (series := read_metrics(path)):
            recipe, ran = path.with_name("recipe.yaml"), path.with_name(ENVIRONMENTS)
            costs = path.with_name(COMPUTE)
            stages.append(
                Stage(
                    name if path.parent == root else path.parent.name,
                    series,
                    recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else "",
                    read_environments(ran) if ran.is_file() else [],
                    read_compute(costs) if costs.is_file() else {},
                    path.parent.resolve(),
                )
            )
    if not stages:
        raise InputError(
            f"'{root}' holds no metrics (neither metrics.jsonl nor */metrics.jsonl nor stages/*/metrics.jsonl). "
            "Give the run folder of llmshearing.train, or of `make demo`."
        )
    stages.sort(key=lambda stage: stage.series["time"].values[0] if "time" in stage.series else 0.0)
    shearings: list[tuple[list[str], dict[str, Any]]] = []
    for path in files_below(root):
        if path.name != "shearing.json":
            continue
        shearing, place = read_shearing(path), str(path.parent.relative_to(root))
        for folders, known in shearings:
            if known == shearing:  # continued pre-training hands the file on
                folders.append(place)
                break
        else:
            shearings.append(([place], shearing))
    summary = read_summary(root / "summary.json") if (root / "summary.json").is_file() else {}
    tasks = read_downstream(root / "downstream.json") if (root / "downstream.json").is_file() else {}
    return Run(name, stages, shearings, summary, tasks)
