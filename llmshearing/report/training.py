"""How training went besides its losses: speed, learning rate, memory, what the teacher says, and stages compared."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.ticker import EngFormatter, MaxNLocator

from llmshearing.report.collect import Series, Stage
from llmshearing.report.style import ACCENT, DOMAIN_COLOURS, Picture, draw, figure_of, label_ends, over_batches, to_svg

_HEIGHT = 2.7  # inches

#: Metrics that are drawn where they were logged: title, pattern of the name, unit, format of the last value.
_LOGGED = [
    ("Learning rate", r"lr-.*", "", ".3g"),
    ("Gradient norm", r"l2_norm/grad/global", "", ".3g"),
    ("Divergence from the teacher", r"distillation/divergence", "nats per token", ".3f"),
    ("Peak memory of a device", r"memory/peak_(?:allocated|reserved)_mem", "GB", ".1f"),
]


def training(stage: Stage, colours: Mapping[str, str]) -> list[Picture]:
    """Speed from the log's own clock, then what callbacks logged, then how often each domain's data was read."""
    pictures = []
    if (speed := tokens_per_second(stage)) is not None:
        note = f"Median {np.median(speed.values):,.0f} tokens/s."
        pictures.append(_picture(stage, "Speed", speed, "tokens per second", note))
    for title, pattern, unit, form in _LOGGED:
        found = [series for name, series in sorted(stage.series.items()) if re.fullmatch(pattern, name)]
        if found and len(found[0].finite):
            pictures.append(_picture(stage, title, found[0], unit, f"Ends at {found[0].last:{form}}."))
    return pictures + _passes(stage, colours)


def downstream(stage: Stage) -> list[Picture]:
    """What the callback ``downstream_evaluation`` logged: a picture for each metric of each task."""
    pictures = []
    for name, series in stage.group("downstream/").items():
        task, _, metric = name.rpartition("/")
        if len(series.finite):
            title = f"{task}: {metric}" if task else "Average of the tasks"
            pictures.append(_picture(stage, title, series, metric if task else "", f"Ends at {series.last:.4g}."))
    return pictures


def tokens_per_second(stage: Stage) -> Series | None:
    """Of each stretch of a fiftieth of the stage; ``None`` where the log does not tell.

    Evaluations and checkpoints count: it is what a user waits for. Stretches in which a run was resumed are left out.
    """
    if not {"tokens", "time"} <= stage.series.keys():
        return None
    tokens, time = stage.series["tokens"], stage.series["time"]
    batches = np.intersect1d(tokens.batches, time.batches)
    if len(batches) < 2:
        return None
    at = np.unique(np.linspace(0, len(batches) - 1, min(len(batches), 51)).round().astype(int))
    ends = batches[at]
    counted, clock = (series.values[np.searchsorted(series.batches, ends)] for series in (tokens, time))
    with np.errstate(all="ignore"):
        speeds = np.diff(counted) / np.diff(clock)
    usable = np.isfinite(speeds) & (speeds > 0)
    if len(speeds) > 4:  # a stretch with a pause between two processes is none of training
        usable &= speeds > 0.1 * np.median(speeds[usable]) if usable.any() else usable
    return Series(ends[1:][usable], speeds[usable]) if usable.any() else None


def compared(stages: Sequence[Stage]) -> list[Picture]:
    """Mean evaluation loss over the tokens of each stage, in one picture; nothing for a single stage."""
    curves = {stage.name: curve for stage in stages if (curve := _over_tokens(stage)) is not None}
    if len(curves) < 2:
        return []
    figure, (ax,) = figure_of(3.2)
    ends = []
    for number, (name, curve) in enumerate(curves.items()):
        colour = DOMAIN_COLOURS[number % len(DOMAIN_COLOURS)]
        draw(ax, curve, colour, name=name, x="tokens")
        ends.append((curve.last, f"{name} {curve.last:.3f}", colour))
    ax.set_xlim(0, max(curve.batches[-1] for curve in curves.values()))
    ax.xaxis.set_major_formatter(EngFormatter(sep=" "))
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.yaxis.set_major_locator(MaxNLocator(4))
    ax.set_xlabel("tokens")
    ax.set_ylabel("nats per token")
    label_ends(figure, ax, ends)
    note = "Mean of the domains, on held-out text, over each stage's own tokens."
    said = "; ".join(f"{name} ends at {curve.last:.3f}" for name, curve in curves.items())
    return [Picture("Evaluation loss of the stages", to_svg(figure, f"Mean evaluation loss: {said}."), note)]


def _over_tokens(stage: Stage) -> Series | None:
    """The mean loss over tokens instead of batches, at evaluations whose batch has a count of them."""
    mean, tokens = stage.mean_loss(), stage.series.get("tokens")
    if mean is None or tokens is None:
        return None
    _, at, where = np.intersect1d(mean.batches, tokens.batches, return_indices=True)
    counts, losses = tokens.values[where], mean.values[at]
    drawn = np.isfinite(counts) & np.isfinite(losses)  # a page names what is not, and where
    return Series(counts[drawn], losses[drawn]) if drawn.any() else None


def _passes(stage: Stage, colours: Mapping[str, str]) -> list[Picture]:
    passes = stage.group("data/passes/")
    if not passes:
        return []
    figure, (ax,) = over_batches(stage.num_batches, _HEIGHT)
    for domain, series in passes.items():
        draw(ax, series, colours[domain], name=domain)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("passes over the data")
    label_ends(
        figure, ax, [(series.last, f"{domain} {series.last:.2g}", colours[domain]) for domain, series in passes.items()]
    )
    note = f"At most {max(series.last for series in passes.values()):.2g} passes over a domain's data."
    return [Picture("Passes over the data", to_svg(figure, f"Passes over each domain's data. {note}"), note)]


def _picture(stage: Stage, title: str, series: Series, unit: str, note: str) -> Picture:
    figure, (ax,) = over_batches(stage.num_batches, _HEIGHT)
    draw(ax, series, ACCENT, name=title)
    if np.nanmin(series.finite) >= 0:
        ax.set_ylim(bottom=0)
    ax.set_ylabel(unit)
    return Picture(title, to_svg(figure, f"{title} over batches. {note}"), note)
