"""Where masks multiply and what shearing removes: one table, read by training and by conversion.

Masks are a mapping from a dimension's name to its z (shapes in :class:`~llmshearing.pruning.target.UnitGroup`); a
dimension that is not pruned is absent. They act as *scale vectors* on rows and columns of weights::

    embedding output    * hidden                     o_proj     rows * residual, columns * heads
    every RMSNorm       * hidden                     down_proj  rows * residual, columns * intermediate

with ``residual = hidden * layer``. The residual stream is then exactly zero in every dropped dimension, so a masked
model computes what is left after the zero rows and columns are cut out, which is what shearing does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from llmshearing.pruning.target import HEADS, HIDDEN, INTERMEDIATE, KV_HEADS, LAYERS
from llmshearing.shape import ModelShape

Masks = Mapping[str, Tensor]


@dataclass(frozen=True)
class Rule:
    """What happens to one tensor: the units its rows and columns belong to, and the vectors that scale them."""

    rows: str | None = None
    columns: str | None = None
    scale_rows: str | None = None
    scale_columns: str | None = None


_NORM = Rule(rows="hidden", scale_rows="hidden")
_QUERIES, _KEYS, _NEURONS = (Rule(rows=rows, columns="hidden") for rows in ("queries", "keys", "intermediate"))
_ATTENTION_OUT = Rule(rows="hidden", columns="queries", scale_rows="residual", scale_columns="heads")
_MLP_OUT = Rule(rows="hidden", columns="intermediate", scale_rows="residual", scale_columns="intermediate")
LAYER_RULES = {
    "input_layernorm": _NORM,
    "self_attn.q_proj": _QUERIES,
    "self_attn.k_proj": _KEYS,
    "self_attn.v_proj": _KEYS,
    "self_attn.q_norm": Rule(),  # per head_dim, which is never pruned
    "self_attn.k_norm": Rule(),
    "self_attn.o_proj": _ATTENTION_OUT,
    "post_attention_layernorm": _NORM,
    "mlp.gate_proj": _NEURONS,
    "mlp.up_proj": _NEURONS,
    "mlp.down_proj": _MLP_OUT,
}
_EMBEDDING = Rule(columns="hidden", scale_columns="hidden")
OUTER_RULES = {"model.embed_tokens": _EMBEDDING, "model.norm": _NORM, "lm_head": Rule(columns="hidden")}
# A tied matrix takes z once, as the embedding; the final norm, which would bring it again, goes unscaled.
TIED_RULES = OUTER_RULES | {"model.norm": Rule(rows="hidden"), "lm_head": _EMBEDDING}

_LAYER_KEY = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_OUTER_KEY = re.compile(r"(.+)\.(weight|bias)")


def rule_for(key: str, *, tied: bool) -> tuple[Rule, int | None] | None:
    """The rule and the layer's index for a Hugging Face parameter name; ``None`` for a name that is not LLaMA's."""
    if match := _LAYER_KEY.fullmatch(key):
        rule = LAYER_RULES.get(match[2])
        return (rule, int(match[1])) if rule else None
    match = _OUTER_KEY.fullmatch(key)
    rule = (TIED_RULES if tied else OUTER_RULES).get(match[1]) if match else None
    return (rule, None) if rule else None


def fold(weight: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """``weight`` (out, in) or (out,) with its rows and columns scaled; the result keeps the widest dtype."""
    if rows is not None:
        weight = weight * (rows.unsqueeze(-1) if weight.dim() == 2 else rows)
    if columns is not None:
        weight = weight * columns
    return weight


def scale_vectors(masks: Masks, source: ModelShape) -> dict[str, Tensor]:
    """The vectors that masks become, differentiable in the masks.

    Returns:
        ``hidden`` (d,), and per layer i ``residual.i`` (d,), ``heads.i`` (H * head_dim,), ``intermediate.i`` (I,);
        only those that the masked dimensions touch.
    """
    vectors: dict[str, Tensor] = {}

    def add(name: str, per_layer: Tensor) -> None:
        vectors.update((f"{name}.{layer}", vector) for layer, vector in enumerate(per_layer.unbind(0)))

    layers, hidden = masks.get(LAYERS), masks.get(HIDDEN)
    if hidden is not None:
        vectors["hidden"] = hidden
    if hidden is not None and layers is not None:
        add("residual", torch.outer(layers, hidden))
    elif hidden is not None:
        add("residual", hidden.expand(source.num_hidden_layers, -1))
    elif layers is not None:
        add("residual", layers.unsqueeze(-1).expand(-1, source.hidden_size))
    if INTERMEDIATE in masks:
        add("intermediate", masks[INTERMEDIATE])
    if (heads := query_head_masks(masks, source)) is not None:
        add("heads", heads.repeat_interleave(source.head_dim, dim=-1))
    return vectors


def query_head_masks(masks: Masks, source: ModelShape) -> Tensor | None:
    """The mask of every query head, (L, H): its own times that of its key-value head; ``None`` if neither is masked."""
    groups, queries = masks.get(KV_HEADS), masks.get(HEADS)
    if groups is None and queries is None:
        return None
    if groups is None:
        combined = queries
    elif queries is None:
        combined = groups.unsqueeze(-1).expand(-1, -1, source.queries_per_group)
    else:
        combined = groups.unsqueeze(-1) * queries
    assert combined is not None
    return combined.reshape(source.num_hidden_layers, source.num_attention_heads)
