"""Which units shearing kept, drawn in the places that they had in the source model."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from llmshearing.report.style import ACCENT, GRID, MUTED, PAPER, Picture, figure_of, to_svg

_KEPT = LinearSegmentedColormap.from_list("kept", [GRID, ACCENT])
_COLUMNS = 1024  # wider maps are binned: each column then shows the share of its units that stay


def kept_maps(shearing: dict[str, Any]) -> list[Picture]:
    """Maps of the kept layers and heads, intermediate dimensions and hidden dimensions, of those that were pruned."""
    source, target, kept = shearing["source"], shearing["target"], shearing["kept"]
    pictures = []
    if any(source[key] != target[key] for key in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")):
        pictures.append(_heads(source, target, kept))
    if source["intermediate_size"] != target["intermediate_size"]:
        pictures.append(_intermediate(source, target, kept))
    if source["hidden_size"] != target["hidden_size"]:
        pictures.append(_hidden(source, target, kept))
    return pictures


def _heads(source: dict[str, Any], target: dict[str, Any], kept: dict[str, Any]) -> Picture:
    layers, heads, groups = (source[key] for key in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads"))
    rows = {entry["layer"]: set(entry["num_attention_heads"]) for entry in kept["per_layer"]}
    figure, ax = _figure(0.6 + 0.19 * layers)
    size = heads // groups
    for layer in range(layers):
        for head in range(heads):
            # A gap between groups: the query heads of one share a key-value head.
            x = head + 0.45 * (head // size) * (groups < heads)
            colour = ACCENT if head in rows.get(layer, ()) else GRID
            ax.add_patch(Rectangle((x + 0.06, layer + 0.1), 0.88, 0.8, facecolor=colour, linewidth=0))
    ax.set(xlim=(0, heads + 0.45 * (groups - 1) * (groups < heads)), ylim=(layers, 0))
    _layer_axis(ax, layers, rows)
    ax.set_xticks([])
    ax.set_xlabel(f"{heads} query heads" + (f" in {groups} key-value groups" if groups < heads else ""))
    note = (
        f"{len(kept['layers'])} of {layers} layers, {target['num_attention_heads']} of {heads} query heads and "
        f"{target['num_key_value_heads']} of {groups} key-value heads in each."
    )
    return Picture("Layers and heads", to_svg(figure, f"Map of kept heads per layer: {note}"), note)


def _intermediate(source: dict[str, Any], target: dict[str, Any], kept: dict[str, Any]) -> Picture:
    layers, size = source["num_hidden_layers"], source["intermediate_size"]
    stay = np.zeros((layers, size))
    for entry in kept["per_layer"]:
        stay[entry["layer"], entry["intermediate_size"]] = 1
    figure, ax = _figure(0.6 + 0.19 * layers)
    _image(ax, stay)
    _layer_axis(ax, layers, {entry["layer"] for entry in kept["per_layer"]})
    ax.set_xlabel(f"{size} intermediate dimensions")
    note = f"{target['intermediate_size']} of {size} in each kept layer." + _bin_note(size)
    return Picture("Intermediate dimensions", to_svg(figure, f"Map of kept intermediate dimensions: {note}"), note)


def _hidden(source: dict[str, Any], target: dict[str, Any], kept: dict[str, Any]) -> Picture:
    size = source["hidden_size"]
    stay = np.zeros((1, size))
    stay[0, kept["hidden_size"]] = 1
    figure, ax = _figure(0.95)
    _image(ax, stay)
    ax.set_yticks([])
    ax.set_xlabel(f"{size} hidden dimensions")
    note = f"{target['hidden_size']} of {size}, the same in all layers." + _bin_note(size)
    return Picture("Hidden dimensions", to_svg(figure, f"Map of kept hidden dimensions: {note}"), note)


def _figure(height: float) -> tuple[Figure, Axes]:
    figure, (ax,) = figure_of(height)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(labelsize=8.5)  # these pictures get half a page, so their text is set smaller
    ax.xaxis.label.set_fontsize(8.5)
    ax.yaxis.label.set_fontsize(8.5)
    return figure, ax


def _image(ax: Axes, stay: np.ndarray) -> None:
    rows, size = stay.shape
    extent = (0, size, rows, 0)
    ax.imshow(binned(stay), cmap=_KEPT, vmin=0, vmax=1, aspect="auto", interpolation="nearest", extent=extent)
    for row in range(1, rows):
        ax.axhline(row, color=PAPER, linewidth=2)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def binned(stay: np.ndarray) -> np.ndarray:
    """Means over nearly equal bins of the columns of (rows, units), in at most ``_COLUMNS`` columns."""
    bins = np.array_split(stay, min(stay.shape[1], _COLUMNS), axis=1)
    return np.stack([units.mean(axis=1) for units in bins], axis=1)


def _layer_axis(ax: Axes, layers: int, kept: Container[int]) -> None:
    """Number the source layers; the dropped ones in a paler colour."""
    step = 1 if layers <= 40 else 2
    ax.set_yticks([layer + 0.5 for layer in range(0, layers, step)], [str(layer) for layer in range(0, layers, step)])
    ax.set_ylabel("source layer")
    ax.tick_params(axis="y", length=0)
    for layer, label in zip(range(0, layers, step), ax.get_yticklabels(), strict=True):
        label.set_color(MUTED if layer in kept else "#a3acb8")
        label.set_fontweight("bold" if layer in kept else "normal")


def _bin_note(size: int) -> str:
    return f" Each column stands for about {size / _COLUMNS:.0f} units." if size > _COLUMNS else ""
