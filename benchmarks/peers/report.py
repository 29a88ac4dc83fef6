"""The table of the comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.peers.cuts import CUTS
from benchmarks.quality.report import spread

SHOWN = ("0", "25", "100")  # and the last one
SHORT = {
    "num_hidden_layers": "layers",
    "hidden_size": "hidden",
    "intermediate_size": "neurons",
    "num_key_value_heads": "KV heads",
    "num_attention_heads": "heads",
}


def table(results: Sequence[Mapping[str, Any]], title: str) -> str:
    """Markdown: by way the losses with deviations, and what the cut took.

    Args:
        results: of one source and one number of steps, as ``run`` writes them.
        title: of the source.
    """
    steps = results[0]["steps"]
    marks = [mark for mark in SHOWN if mark != str(steps) and any(mark in run["losses"] for run in results)]
    lines = [
        f"Source '{results[0]['source']}' ({title}), {steps} steps in all. Eval loss in nats per token after so many "
        "steps, mean over seeds (standard deviation).",
        "",
        f"| way | it cuts | cut for it | steps looked at | {' | '.join(marks)} | {steps} | seeds |",
        "|---" * (len(marks) + 6) + "|",
    ]
    for name, way in CUTS.items():
        runs = [run for run in results if run["way"] == name]
        if runs:
            losses = [spread([run["losses"][mark] for run in runs]) for mark in (*marks, str(steps))]
            cells = [way.title, way.cuts, rest(runs[0]["completed"]), str(runs[0]["looked_at"]), *losses]
            lines.append(f"| {' | '.join(cells)} | {len(runs)} |")
    return "\n".join(lines)


def costs(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: seconds and memory of each cut."""
    lines = [
        "| way | seconds of the cut | peak memory, MB | of it before the cut, MB |",
        "|---|---|---|---|",
    ]
    for name, way in CUTS.items():
        cut = next((run["cut"] for run in results if run["way"] == name and run["cut"]), None)
        if cut:
            lines.append(f"| {way.title} | {cut['seconds']:.1f} | {cut['peak_mb']:.0f} | {cut['before_mb']:.0f} |")
    return "\n".join(lines)


def rest(completed: Mapping[str, Any]) -> str:
    """What was cut for a tool, in a few words."""
    names = [SHORT[name] for name in completed]
    if "KV heads" in names and "heads" in names:
        names.remove("KV heads")
    return ", ".join(names)
