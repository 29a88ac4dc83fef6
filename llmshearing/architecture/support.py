"""Which families are supported in what, as a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import OmegaConf

from llmshearing.architecture.axes import HEADS, HIDDEN, INTERMEDIATE, KV_HEADS, LAYERS, Dimension
from llmshearing.architecture.families import FAMILIES
from llmshearing.architecture.layouts import rotates

_COLUMNS: dict[Dimension, str] = {
    LAYERS: "layers",
    HIDDEN: "hidden",
    INTERMEDIATE: "neurons",
    KV_HEADS: "KV heads",
    HEADS: "heads",
}
_NOTES = """
¹ A layer of these has a sliding window or not, which transformers 4.53 and later write into the config for each layer.
With older ones it follows from the layer's index, so layers cannot be dropped.

² Norms stand between its layers and the residual stream, which therefore cannot be turned: `convert rotate` refuses
such a model, and it is pruned as it is."""


def recipes_by_family(folder: Path) -> dict[str, list[str]]:
    """Names of the recipes in ``folder`` by the ``model_type`` that each expects."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.yaml")):
        model_type = OmegaConf.select(OmegaConf.load(path), "model.expected_config.model_type")
        if model_type is not None:
            found.setdefault(model_type, []).append(path.stem)
    return found


def support_matrix(recipes: Mapping[str, Sequence[str]]) -> str:
    """A Markdown table of families: the dimensions that can be pruned, tied embeddings, rotation and recipes."""
    lines = [
        f"| `model_type` | models | {' | '.join(_COLUMNS.values())} | tied | `convert rotate` | recipes |",
        "|---" * (len(_COLUMNS) + 5) + "|",
    ]
    for model_type, family in FAMILIES.items():
        pruned = ["yes¹" if dimension == LAYERS and family.alternates else "yes" for dimension in _COLUMNS]
        turned = "yes" if rotates(family.layout) else "no²"
        named = ", ".join(f"`{name}`" for name in recipes.get(model_type, ()))
        lines.append(f"| `{model_type}` | {family.title} | {' | '.join(pruned)} | yes | {turned} | {named} |")
    return "\n".join([*lines, _NOTES])
