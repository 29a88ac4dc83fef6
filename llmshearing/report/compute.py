"""``python -m llmshearing.report compute RUN ...``: floating-point operations of all stages, and what they are worth.

The paper's question is what part of training from scratch a sheared model costs. Here it is answered by measured
curves: all that the stages did, teacher, scores, fit and evaluations with it, next to what a run of the same shape from
random weights had done when it was at the same loss. Batches that were lost with a killed process are not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmshearing.errors import InputError, unknown_name
from llmshearing.report.collect import Run, Stage, collect


@dataclass(frozen=True)
class Part:
    """Some of the work: its name, and floating-point operations."""

    name: str
    flops: float


@dataclass(frozen=True)
class Compute:
    """What stages cost.

    Args:
        parts: all work.
        loss: nats per token that it led to, mean over domains. ``None``: nothing was evaluated.
        other: name of the run that it is compared with. ``None``: none.
        other_flops: operations after which that was at the same loss.
        reached: whether it was; else ``other_flops`` is all that it did.
        other_loss: where it ended.
    """

    parts: list[Part]
    loss: float | None = None
    other: str | None = None
    other_flops: float = 0.0
    reached: bool = False
    other_loss: float = 0.0

    @property
    def total(self) -> float:
        """Operations of all parts."""
        return sum(part.flops for part in self.parts)


def compute(
    folders: Sequence[str | Path], *, against: str | Path | None = None, without: Sequence[str] = ()
) -> Compute:
    """Add up what the runs in some folders cost.

    Args:
        folders: of runs, see :func:`~llmshearing.report.collect.collect`; those of all stages of one model.
        against: folder of a run of the same shape, or the name of a stage: what trained from random weights, for the
            paper's question. It is not counted.
        without: names of other stages that are not counted.

    Raises:
        InputError: a folder holds no run, a run does not say what it cost, two stages have one name, or there is no
            such stage; the shapes or the evaluated domains differ, or nothing was evaluated.
    """
    runs = [collect(folder) for folder in folders]
    stages: dict[str, Stage] = {}
    for stage in (stage for run in runs for stage in run.stages):
        if (known := stages.setdefault(stage.name, stage)).folder != stage.folder:
            raise InputError(
                f"Two stages are called '{stage.name}': '{known.folder}' and '{stage.folder}'. Rename a folder."
            )
    for name in without:
        if name not in stages:
            raise unknown_name("stage in --without", name, stages)
    other = None
    if against is not None and str(against) in stages:
        other = stages[str(against)]
    elif against is not None and Path(against).is_dir():
        other = collect(against).stages[-1]
    elif against is not None:
        raise InputError(f"--against '{against}' is neither a folder nor one of the stages {', '.join(stages)}.")
    left_out = None if other is None else other.folder  # which may lie in a folder that is counted
    counted = [stage for name, stage in stages.items() if stage.folder != left_out and name not in without]
    counted.sort(key=lambda stage: stage.series["time"].values[0] if "time" in stage.series else 0.0)
    if not counted:
        raise InputError("No stage is left to count. Give the folders of the stages that led to the model.")
    parts = [part for stage in counted for part in _parts(stage)]
    parts += _shearings(runs, counted)
    return Compute(parts) if other is None else Compute(parts, *_compare(counted[-1], other))


def _parts(stage: Stage) -> list[Part]:
    costs, tokens = _costs(stage), _last_tokens(stage)
    evaluated = {int(batch) for series in stage.losses().values() for batch in series.batches}
    parts = {
        "scores": costs["scores"],
        "training": tokens * costs["model"],
        "teacher": tokens * costs["teacher"],
        "evaluation": len(evaluated) * costs["evaluation"],
    }
    return [Part(f"{stage.name}: {name}", flops) for name, flops in parts.items() if flops]


def _shearings(runs: Sequence[Run], stages: Sequence[Stage]) -> list[Part]:
    """What is noted in ``shearing.json``, each once; scores that a stage has counted are not counted again."""
    parts = []
    scored = any(stage.compute.get("scores") for stage in stages)
    found = [shearing for run in runs for _, shearing in run.shearings]
    for shearing in (each for place, each in enumerate(found) if each not in found[:place]):  # runs hand them on
        for name in ("scores", "fit"):
            flops = (shearing.get(name) or {}).get("flops", 0.0)
            if flops and not (name == "scores" and scored):
                parts.append(Part(f"shearing: {name}", float(flops)))
    return parts


def _costs(stage: Stage) -> dict[str, float]:
    if not stage.compute:
        raise InputError(
            f"Stage '{stage.name}' does not say what its tokens cost, as one of an earlier version. Train it on by a "
            "batch, or again."
        )
    return stage.compute


def _last_tokens(stage: Stage) -> float:
    if "tokens" not in stage.series:
        raise InputError(f"Stage '{stage.name}' has not logged its tokens, so its compute is not known.")
    return stage.series["tokens"].last


def _compare(last: Stage, control: Stage) -> tuple[float, str, float, bool, float]:
    """Loss of the last stage; name, operations until that loss, whether it came there, and end of the other."""
    ours, theirs = last.mean_loss(), control.mean_loss()
    for stage, series in ((last, ours), (control, theirs)):
        if series is None:
            raise InputError(f"Stage '{stage.name}' evaluated no domain, so there is no loss to compare by.")
    assert ours is not None
    assert theirs is not None
    if last.losses().keys() != control.losses().keys():
        raise InputError(
            f"Stage '{last.name}' evaluated {', '.join(sorted(last.losses()))}, '{control.name}' "
            f"{', '.join(sorted(control.losses()))}: their losses cannot be compared. Evaluate the same domains."
        )
    costs = _costs(control)
    if costs["num_parameters"] != _costs(last)["num_parameters"]:
        raise InputError(
            f"Stage '{control.name}' trained {costs['num_parameters']:,.0f} parameters, '{last.name}' "
            f"{_costs(last)['num_parameters']:,.0f}. Compare with the same shape."
        )
    tokens = np.interp(theirs.batches, control.series["tokens"].batches, control.series["tokens"].values)
    spent = tokens * (costs["model"] + costs["teacher"])
    at = _first_at(theirs.values, ours.last)
    if at is None:
        return ours.last, control.name, float(spent[-1]), False, theirs.last
    return ours.last, control.name, float(np.interp(at, np.arange(len(spent)), spent)), True, theirs.last


def _first_at(losses: np.ndarray, wanted: float) -> float | None:
    """Where losses, in order, first are at ``wanted``, between two of them by a straight line."""
    for index, loss in enumerate(losses):
        if loss <= wanted:
            before = losses[index - 1] if index else loss
            return index - float((wanted - loss) / (before - loss)) if before > loss else float(index)
    return None


def as_text(found: Compute) -> str:
    """A table in Markdown, and a sentence on the run that it is compared with."""
    lines = ["| work | FLOP | share |", "|---|---|---|"]
    lines += [f"| {part.name} | {part.flops:.3g} | {part.flops / found.total:.1%} |" for part in found.parts]
    lines.append(f"| all | {found.total:.3g} | 100% |")
    if found.other is not None:
        share = f"{found.total / found.other_flops:.1%}"
        if found.reached:
            said = f"'{found.other}' was at {found.loss:.3f} nats after {found.other_flops:.3g} FLOP: "
            lines += ["", f"{said}this took {share} of that."]
        else:
            said = f"'{found.other}' ended at {found.other_loss:.3f} nats after {found.other_flops:.3g} FLOP, short of "
            lines += ["", f"{said}{found.loss:.3f}: this took less than {share} of what that would."]
    return "\n".join(lines) + "\n"


def as_json(found: Compute) -> dict[str, Any]:
    """Plain types: ``flops`` by part, ``total``, and with another run ``loss``, ``other`` and ``ratio``."""
    values: dict[str, Any] = {"flops": {part.name: part.flops for part in found.parts}, "total": found.total}
    if found.other is not None:
        other = {"flops": found.other_flops, "reached": found.reached, "loss": found.other_loss}
        values |= {"loss": found.loss, "other": {"name": found.other, **other}}
        values["ratio"] = found.total / found.other_flops
    return values
