"""The families of models that are supported, by ``model_type``: each is an entry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmshearing.architecture.layouts import GEMMA, GLM, GLM4, LLAMA, OLMO2, PHI3, Layout
from llmshearing.architecture.modules import LLAMA_NORM, NormKind


@dataclass(frozen=True)
class Family:
    """What ``transformers`` makes of a ``model_type``.

    Args:
        title: models of it that people know.
        architecture: the class of its causal LM.
        layout: of a decoder layer.
        switches: which small parameters a layer has: the fields of
            :class:`~llmshearing.architecture.shapes.ModelShape` by the config attribute that switches each, or
            ``True`` where the family always has it.
        norm: how its norms compute.
        per_layer: config entries that are lists with one item for every layer.
        tied: whether embeddings are tied where the config does not say.
        scaled_embedding: the embedding's output is multiplied by the root of ``hidden_size``.
        alternates: the kind of a layer follows from its index, unless the config has ``layer_types``.
    """

    title: str
    architecture: str
    layout: Layout = LLAMA
    switches: Mapping[str, str | bool] = field(default_factory=dict)
    norm: NormKind = LLAMA_NORM
    per_layer: tuple[str, ...] = ("layer_types",)
    tied: bool = False
    scaled_embedding: bool = False
    alternates: bool = False


_QKV_AND_OUTPUT = {"qkv_bias": "attention_bias", "output_bias": "attention_bias"}
_GEMMA_NORM = NormKind(offset=True, eps="eps")
_ALL_BIASES = {**_QKV_AND_OUTPUT, "mlp_bias": "mlp_bias"}

FAMILIES: dict[str, Family] = {
    "llama": Family("Llama 2 and 3, SmolLM2", "LlamaForCausalLM", switches=_ALL_BIASES),
    "mistral": Family("Mistral", "MistralForCausalLM"),
    "qwen2": Family("Qwen2, Qwen2.5", "Qwen2ForCausalLM", switches={"qkv_bias": True}),
    "qwen3": Family("Qwen3", "Qwen3ForCausalLM", switches={**_QKV_AND_OUTPUT, "qk_norm": True}),
    "granite": Family("Granite 3", "GraniteForCausalLM", switches=_ALL_BIASES),
    "smollm3": Family(
        "SmolLM3", "SmolLM3ForCausalLM", switches=_ALL_BIASES, per_layer=("layer_types", "no_rope_layers"), tied=True
    ),
    "phi3": Family("Phi-3, Phi-4", "Phi3ForCausalLM", PHI3),
    "glm": Family("GLM-4 9B", "GlmForCausalLM", GLM, {"qkv_bias": "attention_bias"}),
    "glm4": Family("GLM-4 0414", "Glm4ForCausalLM", GLM4, {"qkv_bias": "attention_bias"}),
    "olmo2": Family("OLMo 2", "Olmo2ForCausalLM", OLMO2, {**_QKV_AND_OUTPUT, "qk_norm": True}, NormKind(wide=True)),
    "gemma2": Family(
        "Gemma 2",
        "Gemma2ForCausalLM",
        GEMMA,
        _QKV_AND_OUTPUT,
        _GEMMA_NORM,
        tied=True,
        scaled_embedding=True,
        alternates=True,
    ),
    "gemma3_text": Family(
        "Gemma 3, text",
        "Gemma3ForCausalLM",
        GEMMA,
        {**_QKV_AND_OUTPUT, "qk_norm": True},
        _GEMMA_NORM,
        tied=True,
        scaled_embedding=True,
        alternates=True,
    ),
}
