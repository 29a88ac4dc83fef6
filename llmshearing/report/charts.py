"""Curves over the batches of one stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator, PercentFormatter

from llmshearing.report.collect import Series, Stage
from llmshearing.report.style import (
    ACCENT,
    INK,
    MUTED,
    PAPER,
    WARM,
    Picture,
    draw,
    label_ends,
    over_batches,
    thin,
    to_svg,
)  # fmt: skip

_HEIGHT = 2.7  # inches

DIMENSIONS = {
    "num_hidden_layers": "Layers",
    "hidden_size": "Hidden size",
    "intermediate_size": "Intermediate size",
    "num_attention_heads": "Attention heads",
    "num_key_value_heads": "Key-value heads",
}


def training_loss(stage: Stage) -> list[Picture]:
    """The loss of every batch, and its running mean over 2 % of the stage."""
    series = stage.series.get("loss/train/total")
    if series is None:
        return []
    figure, (ax,) = over_batches(stage.num_batches, _HEIGHT)
    window = max(1, len(series.values) // 50)
    mean = np.convolve(series.values, np.full(window, 1 / window), mode="valid")
    centred = Series(series.batches[window // 2 :][: len(mean)], mean)
    draw(ax, series, ACCENT, name="loss of a batch", alpha=0.3, linewidth=1)
    draw(ax, centred, ACCENT, name="running mean")
    ax.set_ylabel("nats per token")
    note = f"Ends at {mean[-1]:.3f}."
    if window > 1:
        note += f" The dark line is a running mean over {window} batches."
    return [Picture("Training loss", to_svg(figure, f"Training loss over batches. {note}"), note)]


def mean_loss(stage: Stage) -> list[Picture]:
    """The mean of all domains' evaluation losses; nothing for a single domain."""
    mean = stage.mean_loss()
    if mean is None or len(stage.losses()) < 2:
        return []
    figure, (ax,) = over_batches(stage.num_batches, _HEIGHT)
    draw(ax, mean, ACCENT, name="mean")
    ax.set_ylabel("nats per token")
    note = f"Ends at {mean.last:.3f}."
    return [Picture("Mean of the domains", to_svg(figure, f"Mean evaluation loss over batches. {note}"), note)]


def domain_losses(stage: Stage, colours: Mapping[str, str]) -> list[Picture]:
    """One small picture per domain: evaluation loss, and the reference loss where there is one."""
    references = stage.group("data/reference_loss/")
    pictures = []
    for domain, series in stage.losses().items():
        figure, (ax,) = over_batches(stage.num_batches, _HEIGHT)
        draw(ax, series, colours[domain], name=domain)
        note = f"Ends at {series.last:.3f}"
        if domain in references:
            reference = references[domain].last
            ax.axhline(reference, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
            note += f", reference {reference:.3f}"
        ax.set_ylabel("nats per token")
        pictures.append(Picture(domain, to_svg(figure, f"Loss on {domain} over batches. {note}."), note + "."))
    return pictures


def proportions(stage: Stage, colours: Mapping[str, str]) -> list[Picture]:
    """What share of the training data each domain has, stacked to one."""
    shares = stage.group("data/proportion/")
    if not shares:
        return []
    batches = np.unique(np.concatenate([series.batches for series in shares.values()]))
    # A proportion holds from its update to the next one, so it is carried forward to the end of the stage.
    edges = np.append(batches, max(stage.num_batches, batches[-1] + 1))
    stack = [np.append(_held(series, batches), series.last) for series in shares.values()]
    figure, (ax,) = over_batches(stage.num_batches, _HEIGHT)
    fills = [colours[domain] for domain in shares]
    ax.stackplot(edges, stack, colors=fills, step="post", edgecolor=PAPER, linewidth=0.8)
    ax.set_ylim(0, 1)
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.set_ylabel("share of the data")
    centres = np.cumsum([rows[-1] for rows in stack]) - [rows[-1] / 2 for rows in stack]
    label_ends(figure, ax, [
        (float(centre), f"{domain} {series.last:.1%}", colours[domain])
        for centre, (domain, series) in zip(centres, shares.items(), strict=True)
    ])  # fmt: skip
    note = ""
    if effective := stage.series.get("data/effective_domains"):
        note = f"At the end the mix is as varied as {effective.last:.1f} equal domains (of {len(shares)})."
    return [Picture("Domain proportions", to_svg(figure, "Share of each domain in the data over batches"), note)]


def dimensions(stage: Stage) -> list[Picture]:
    """One picture per pruned dimension: its size against the target, undecided masks, multipliers."""
    pictures = []
    for name, title in DIMENSIONS.items():
        logged = stage.group(f"pruning/{name}/")
        if "expected" not in logged:
            continue
        rows = [3.0] + [1.5 for row in (("undecided",), ("lambda", "phi")) if any(key in logged for key in row)]
        figure, (size, *rest) = over_batches(stage.num_batches, 0.6 + 0.65 * sum(rows), rows=rows)
        expected = logged["expected"]
        draw(size, expected, ACCENT, name="expected", label="expected")
        note = f"Ends at {expected.last:.1f}"
        if "target" in logged:
            dashed: dict[str, Any] = {"linewidth": 1.2, "linestyle": (0, (4, 3))}
            draw(size, logged["target"], INK, name="target", label="target", **dashed)
            note += f", target {logged['target'].last:.0f}"
        size.set_ylabel("size")
        size.set_ylim(bottom=0)
        size.legend(loc="lower right", bbox_to_anchor=(1, 0.97), ncols=2, frameon=False, fontsize=10.5, borderpad=0)
        size.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        remaining = iter(rest)
        if "undecided" in logged:
            ax = next(remaining)
            curve = thin(logged["undecided"])
            ax.fill_between(curve.batches, curve.values, color=MUTED, alpha=0.35, linewidth=0)
            ax.set_ylabel("undecided")
            ax.yaxis.set_major_locator(MaxNLocator(3, integer=True))
            ax.set_ylim(bottom=0)
            note += f", {logged['undecided'].last:.0f} masks undecided"
        if "lambda" in logged or "phi" in logged:
            ax = next(remaining)
            for key, symbol, colour in (("lambda", "λ", ACCENT), ("phi", "φ", WARM)):
                if key in logged:
                    draw(ax, logged[key], colour, name=symbol, label=symbol)
            ax.set_ylabel("multipliers")
            ax.legend(loc="lower right", bbox_to_anchor=(1, 0.9), ncols=2, frameon=False, fontsize=10.5, borderpad=0)
        figure.align_ylabels()
        pictures.append(Picture(title, to_svg(figure, f"{title} over batches. {note}."), note + "."))
    return pictures


def constraint(stage: Stage) -> list[Picture]:
    """The Lagrangian, and the largest distance from the final shape of any group of units."""
    curves = {
        label: stage.series[f"pruning/{key}"]
        for key, label in {"distance": "distance", "lagrangian": "Lagrangian"}.items()
        if f"pruning/{key}" in stage.series
    }
    if not curves:
        return []
    figure, panels = over_batches(stage.num_batches, 0.6 + 1.95 * len(curves), rows=[1] * len(curves))
    for ax, (label, series) in zip(panels, curves.items(), strict=True):
        draw(ax, series, ACCENT, name=label)
        ax.set_ylabel(label)
        if label == "distance":
            ax.yaxis.set_major_formatter(PercentFormatter(1))
            ax.set_ylim(bottom=0)
    figure.align_ylabels()
    note = ""
    if "distance" in curves:
        note = f"The worst group of units ends {curves['distance'].last:.1%} of its source size from its final size."
    svg = to_svg(figure, f"{' and '.join(curves)} over batches. {note}")
    return [Picture("Distance from the final shape", svg, note)]


def _held(series: Series, batches: Sequence[int] | np.ndarray) -> np.ndarray:
    """The series' value at each of ``batches``: the latest one so far, or the first before there is any."""
    index = np.searchsorted(series.batches, batches, side="right") - 1
    return series.values[np.maximum(index, 0)]
