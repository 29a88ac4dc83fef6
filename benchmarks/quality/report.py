"""Tables and a picture of the comparison."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.quality.sources import Source
from benchmarks.quality.ways import WAYS
from llmshearing.fileio import write_text

Results = Sequence[Mapping[str, Any]]


def write_report(results: Results, sources: Mapping[str, Source], out: Path) -> str:
    """Write ``results.md`` and ``results.png`` to ``out``; returns the former's text."""
    parts = []
    for name, source in sources.items():
        if _of(results, source=name, steps=None):
            parts += [compare_ways(results, source), compare_starts(results, source, None)]
            parts += [compare_rates(results, source)]
        budgets = {run["job"]["steps"] for run in _of(results, source=name) if name != "demo"}
        parts += [compare_starts(results, source, steps) for steps in sorted(budgets - {None})]
    curve = _of(results, source="demo", mix="constant")
    if curve:
        parts += [compare_budgets(curve), compare_mixes(results)]
        picture(curve).savefig(out / "results.png", dpi=150, bbox_inches="tight")
    text = "\n\n".join(parts)
    write_text(out / "results.md", text + "\n")
    return text


def compare_ways(results: Results, source: Source) -> str:
    """Table of all ways on one source."""
    lines = [
        f"Source '{source.name}' ({source.title}), {source.steps} steps of {source.batch_size} sequences in all. "
        "Eval loss in nats per token, mean over seeds (standard deviation).",
        "",
        "| way | steps of search + training | right after shearing | final | seeds |",
        "|---|---|---|---|---|",
    ]
    for name, way in WAYS.items():
        runs = _of(results, source=source.name, steps=None, way=name)
        if runs:
            steps = f"{runs[0]['search']} + {runs[0]['training']}"
            sheared = "" if not way.shears else spread([run["sheared"] for run in runs])
            final = spread([run["final"] for run in runs])
            lines.append(f"| {way.title} | {steps} | {sheared} | {final} | {len(runs)} |")
    return "\n".join(lines)


def compare_starts(results: Results, source: Source, steps: int | None) -> str:
    """Table of how losses fall after shearing, at one budget."""
    runs = [run for run in _of(results, source=source.name, steps=steps) if run.get("curve")]
    if not runs:
        return f"No curve on '{source.name}'."
    marks = sorted({int(mark) for run in runs for mark in run["curve"]})
    lines = [
        f"Source '{source.name}' ({source.title}), {steps or source.steps} steps of {source.batch_size} sequences, "
        f"{runs[0]['tokens_per_parameter']:.2g} tokens per parameter of the target. Eval loss in nats per token "
        "after so many steps in all, mean over seeds (standard deviation).",
        "",
        "| way | right after shearing |" + "".join(f" {mark} |" for mark in marks) + " final | seeds |",
        "|---|---|" + "---|" * len(marks) + "---|---|",
    ]
    for name, way in WAYS.items():
        own = [run for run in runs if run["job"]["way"] == name]
        if own:
            sheared = spread([run["sheared"] for run in own]) if way.shears else ""
            cells = [[run["curve"][str(mark)] for run in own if str(mark) in run["curve"]] for mark in marks]
            cells.append([run["final"] for run in own])
            losses = " | ".join(spread(values) if values else "" for values in cells)
            lines.append(f"| {way.title} | {sheared} | {losses} | {len(own)} |")
    return "\n".join(lines)


def compare_rates(results: Results, source: Source) -> str:
    """Table of final losses by learning rate."""
    rates = sorted({_rate(run) for run in results if run["job"]["source"] == source.name})
    lines = [
        f"Source '{source.name}', final losses by learning rate, in multiples of {source.lr:g}, the other tables'.",
        "",
        "| way |" + "".join(f" {rate} |" for rate in rates),
        "|---|" + "---|" * len(rates),
    ]
    for name, way in WAYS.items():
        runs = [run for run in results if (run["job"]["source"], run["job"]["way"]) == (source.name, name)]
        if any(_rate(run) > 1 for run in runs):
            cells = [[run["final"] for run in runs if _rate(run) == rate] for rate in rates]
            lines.append(f"| {way.title} | " + " | ".join(spread(values) if values else "" for values in cells) + " |")
    return "\n".join(lines)


def _rate(run: Mapping[str, Any]) -> int:
    return run["job"].get("rate", 1)  # earlier results have none


def compare_budgets(curve: Results) -> str:
    """Table of losses by budget, and of the steps that random weights need for the same loss."""
    losses = _by_budget(curve)
    scratch = {steps: statistics.mean(values) for steps, values in losses["scratch"].items()}
    lines = [
        "The demo's source, even data mix: a pruned start against random weights at equal steps in all.",
        "",
        "| steps | random weights | pruned | random weights need, for the pruned one's loss |",
        "|---|---|---|---|",
    ]
    (pruned,) = (losses[way] for way in losses if way != "scratch")
    for steps, values in sorted(losses["scratch"].items()):
        if steps in pruned:
            needed = steps_for(scratch, statistics.mean(pruned[steps]))
            ratio = "more than any budget here" if needed is None else f"{needed / steps:.1f} times the steps"
            lines.append(f"| {steps} | {spread(values)} | {spread(pruned[steps])} | {ratio} |")
        else:
            lines.append(f"| {steps} | {spread(values)} | | |")
    return "\n".join(lines)


def compare_mixes(results: Results) -> str:
    """Line on the dynamic and the constant mix at the same budget."""
    dynamic = [run for run in _of(results, source="demo", mix="dynamic") if run["job"]["steps"]]
    if not dynamic:
        return "No run with a dynamic mix."
    job = dynamic[0]["job"]
    constant = _of(results, source="demo", mix="constant", steps=job["steps"], way=job["way"])
    return (
        f"Data mix over {job['steps']} steps, '{WAYS[job['way']].title}': "
        f"dynamic {spread([run['final'] for run in dynamic])}, "
        f"constant {spread([run['final'] for run in constant])} nats."
    )


def steps_for(curve: Mapping[int, float], loss: float) -> float | None:
    """Steps at which a falling curve reaches ``loss``, between its points linear in the logarithm of steps."""
    points = sorted(curve.items())
    if loss >= points[0][1]:
        return float(points[0][0])
    for (left, high), (right, low) in itertools.pairwise(points):
        if low <= loss <= high:
            share = (high - loss) / (high - low)
            return math.exp(math.log(left) + share * (math.log(right) - math.log(left)))
    return None


def picture(curve: Results) -> Figure:
    """Loss over budget for both starts, every seed a point."""
    figure = Figure(figsize=(5, 3.5))
    axes = figure.subplots()
    for way, losses in _by_budget(curve).items():
        means = sorted((steps, statistics.mean(values)) for steps, values in losses.items())
        (line,) = axes.plot(*zip(*means, strict=True), label=WAYS[way].title)
        for steps, values in losses.items():
            axes.plot([steps] * len(values), values, ".", color=line.get_color())
    budgets = sorted({run["job"]["steps"] for run in curve})
    axes.set_xscale("log")
    axes.set_xticks(budgets, [str(steps) for steps in budgets])
    axes.minorticks_off()
    axes.set_xlabel("training steps in all")
    axes.set_ylabel("eval loss, nats per token")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def spread(values: Sequence[float]) -> str:
    """Mean, and the standard deviation where there are several."""
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} ({statistics.stdev(values):.3f})" if len(values) > 1 else mean


def _by_budget(curve: Results) -> dict[str, dict[int, list[float]]]:
    losses: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in curve:
        losses[run["job"]["way"]][run["job"]["steps"]].append(run["final"])
    return losses


def _of(results: Results, **wanted: Any) -> Results:
    """Runs at the sources' own learning rates."""
    return [run for run in results if _rate(run) == 1 and all(run["job"][key] == wanted[key] for key in wanted)]
