"""The look that all pictures share, and how a matplotlib figure becomes SVG inside a page."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from llmshearing.report.collect import Series

INK, MUTED, GRID, PAPER, ACCENT, WARM = "#1f2328", "#667085", "#e4e7ec", "#fefefe", "#0072b2", "#d55e00"

# Okabe and Ito's colours, which stay apart under the common kinds of colour blindness, with their yellow, too pale for
# a white page, replaced by a dark violet. Past eight domains colours repeat; the labels still tell lines apart.
DOMAIN_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4b3f8f", "#4d4d4d")

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

_RC: dict[Any, Any] = {
    "font.size": 11,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10.5,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "text.color": INK,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",  # real text: small files, and letters that stay sharp and can be searched
    "svg.hashsalt": "llmshearing",  # the same run gives the same file
}

# Inches, of 72 units each: a third of a desktop page or the whole of a phone, either of which shows text at its size.
_WIDTH = 4.7
_MAX_POINTS = 400
_DOTS = 12  # so few points are dots on their line
_MAX_HOVER = 100  # of them say their values
_HOVER = "hover:"  # marks curves that do
#: Colours that the page sets, so that pictures are dark where it is.
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line", PAPER: "--paper"}


@dataclass(frozen=True)
class Picture:
    """One picture of the page: an SVG element, what it shows, and what to note about it."""

    title: str
    svg: str
    note: str = ""


def figure_of(height: float, *, rows: Sequence[float] = (1,)) -> tuple[Figure, list[Axes]]:
    """A figure of the common width and ``height`` inches, with axes of relative heights ``rows`` below each other."""
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        grid = figure.subplots(len(rows), 1, sharex=True, squeeze=False, height_ratios=rows)[:, 0]
    return figure, list(grid)


def over_batches(num_batches: int, height: float, *, rows: Sequence[float] = (1,)) -> tuple[Figure, list[Axes]]:
    """Like :func:`figure_of`, with the batches of a stage on x."""
    figure, grid = figure_of(height, rows=rows)
    for ax in grid:
        ax.yaxis.set_major_locator(MaxNLocator(4))
    grid[-1].set_xlim(0, num_batches)
    grid[-1].xaxis.set_major_locator(MaxNLocator(5, integer=True))
    grid[-1].set_xlabel("batches")
    return figure, grid


def to_svg(figure: Figure, description: str) -> str:
    """The figure as an ``<svg>`` element that scales with the page; ``description`` is for those who cannot see it."""
    buffer = io.StringIO()
    with matplotlib.rc_context(_RC):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue().replace("</svg>", _points(figure, figure.get_figheight() * 72) + "</svg>")
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[^"]*pt"', "", svg, count=2)  # the view box stays, the page sets the size
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # nothing refers to these, and they repeat from picture to picture
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(description)}"', 1)


def draw(ax: Axes, series: Series, colour: str, *, name: str, x: str = "batch", **settings: Any) -> None:
    """Plot a curve whose points say their values where a pointer rests on them; a few points stand as dots, whole."""
    series = thin(series)
    y = np.where(np.isfinite(series.values), series.values, np.nan)  # infinite values leave a gap as NaN does
    dots: dict[str, Any] = {"marker": "o", "clip_on": False, "zorder": 3} if len(y) <= _DOTS else {}
    (line,) = ax.plot(series.batches, y, color=colour, **dots, **settings)
    line.set_gid(f"{_HOVER}{name}\n{x}")


def _points(figure: Figure, height: float) -> str:
    """Circles that nobody sees on the points of what :func:`draw` drew, each with a title, which browsers show."""
    circles = []
    for ax in figure.axes:
        for line in ax.lines:
            if not (gid := line.get_gid() or "").startswith(_HOVER):
                continue
            name, x = gid.removeprefix(_HOVER).split("\n")
            values = np.asarray(line.get_xydata(), dtype=float)
            values = values[np.isfinite(values).all(axis=1)]
            values = values[:: -(-len(values) // _MAX_HOVER) or 1]
            for (at, value), (left, up) in zip(values, ax.transData.transform(values), strict=True):
                scale = 72 / figure.dpi
                title = html.escape(f"{name}: {value:,.4g} at {x} {at:,.0f}")
                circles.append(
                    f'<circle class="point" cx="{left * scale:.1f}" cy="{height - up * scale:.1f}" r="5">'
                    f"<title>{title}</title></circle>"
                )
    return "".join(circles)


def thin(series: Series, *, limit: int = _MAX_POINTS) -> Series:
    """At most ``limit`` points: means over equal runs of values, so that a long curve stays light and readable."""
    size = -(-len(series.values) // limit)
    if size == 1:
        return series
    starts = np.arange(0, len(series.values), size)
    counts = np.diff(np.append(starts, len(series.values)))
    return Series(np.add.reduceat(series.batches, starts) / counts, np.add.reduceat(series.values, starts) / counts)


def label_ends(figure: Figure, ax: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Write ``(y, text, colour)`` right of the axes, each with a dot in its colour, apart where they would overlap."""
    low, high = ax.get_ylim()
    gap = 14 * (high - low) / (figure.get_figheight() * 72 * 0.8)  # a line of text, in units of y
    labels = sorted(labels)
    places = spread([y for y, _, _ in labels], gap=gap, high=high - gap / 2)
    for place, (_, text, colour) in zip(places, labels, strict=True):
        for offset, written, ink in ((6, "●", colour), (17, text, INK)):
            ax.annotate(
                written,
                (1.0, place),
                xytext=(offset, 0),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                color=ink,
                va="center",
                fontsize=10.5,
                annotation_clip=False,
                parse_math=False,
            )


def spread(places: Sequence[float], *, gap: float, high: float) -> list[float]:
    """Move ascending ``places`` as little as needed up, then down from ``high``, until they are ``gap`` apart."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else place)
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], high)
        high = moved[index] - gap
    return moved
