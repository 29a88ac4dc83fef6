"""The families of models that are supported, by ``model_type``: each is an entry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmshearing.architecture.layouts import LLAMA, Layout
from llmshearing.architecture.modules import LLAMA_NORM, NormKind


@dataclass(frozen=True)
class Family:
    """What ``transformers`` makes of a ``model_type``.

    Args:
        architecture: the class of its causal LM.
        layout: of a decoder layer.
        switches: which small parameters a layer has: the fields of
            :class:`~llmshearing.architecture.shapes.ModelShape` by the config attribute that switches each, or
            ``True`` where the family always has it.
        norm: how its norms compute.
        per_layer: config entries that are lists with one item for every layer.
        scaled_embedding: the embedding's output is multiplied by the root of ``hidden_size``.
        alternates: the kind of a layer follows from its index, unless the config has ``layer_types``.
    """

    architecture: str
    layout: Layout = LLAMA
    switches: Mapping[str, str | bool] = field(default_factory=dict)
    norm: NormKind = LLAMA_NORM
    per_layer: tuple[str, ...] = ("layer_types",)
    scaled_embedding: bool = False
    alternates: bool = False


_QKV_AND_OUTPUT = {"qkv_bias": "attention_bias", "output_bias": "attention_bias"}
_ALL_BIASES = {**_QKV_AND_OUTPUT, "mlp_bias": "mlp_bias"}

FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaForCausalLM", switches=_ALL_BIASES),
    "mistral": Family("MistralForCausalLM"),
    "qwen2": Family("Qwen2ForCausalLM", switches={"qkv_bias": True}),
    "qwen3": Family("Qwen3ForCausalLM", switches={**_QKV_AND_OUTPUT, "qk_norm": True}),
}
