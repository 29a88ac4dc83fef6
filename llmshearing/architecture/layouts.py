"""The modules of a decoder layer, in the order of ``transformers``: one list for every kind of layer."""

from __future__ import annotations

from llmshearing.architecture.axes import HEADS, HIDDEN, KV_HEADS, VOCABULARY
from llmshearing.architecture.axes import INTERMEDIATE as NEURONS
from llmshearing.architecture.modules import Module, head_norm, norm, post_norm, reader, writer

Layout = tuple[Module, ...]

LLAMA: Layout = (
    reader("self_attn.q_proj", HEADS, reads="input_layernorm", bias="qkv_bias"),
    reader("self_attn.k_proj", KV_HEADS, reads="input_layernorm", bias="qkv_bias"),
    reader("self_attn.v_proj", KV_HEADS, reads="input_layernorm", bias="qkv_bias"),
    writer("self_attn.o_proj", HEADS, bias="output_bias"),
    head_norm("self_attn.q_norm"),
    head_norm("self_attn.k_norm"),
    reader("mlp.gate_proj", NEURONS, reads="post_attention_layernorm", bias="mlp_bias"),
    reader("mlp.up_proj", NEURONS, reads="post_attention_layernorm", bias="mlp_bias"),
    writer("mlp.down_proj", NEURONS, bias="mlp_bias"),
    norm("input_layernorm"),
    norm("post_attention_layernorm"),
)

# q, k, v in one matrix, and gate and up in another.
PHI3: Layout = (
    writer("self_attn.o_proj", HEADS),
    reader("self_attn.qkv_proj", HEADS, KV_HEADS, KV_HEADS, reads="input_layernorm"),
    reader("mlp.gate_up_proj", NEURONS, NEURONS, reads="post_attention_layernorm"),
    writer("mlp.down_proj", NEURONS),
    norm("input_layernorm"),
    norm("post_attention_layernorm"),
)

GLM: Layout = (
    reader("self_attn.q_proj", HEADS, reads="input_layernorm", bias="qkv_bias"),
    reader("self_attn.k_proj", KV_HEADS, reads="input_layernorm", bias="qkv_bias"),
    reader("self_attn.v_proj", KV_HEADS, reads="input_layernorm", bias="qkv_bias"),
    writer("self_attn.o_proj", HEADS),
    reader("mlp.gate_up_proj", NEURONS, NEURONS, reads="post_attention_layernorm"),
    writer("mlp.down_proj", NEURONS),
    norm("input_layernorm"),
    norm("post_attention_layernorm"),
)

# GLM's with a norm behind attention and MLP as well.
GLM4: Layout = (
    reader("self_attn.q_proj", HEADS, reads="input_layernorm", bias="qkv_bias"),
    reader("self_attn.k_proj", KV_HEADS, reads="input_layernorm", bias="qkv_bias"),
    reader("self_attn.v_proj", KV_HEADS, reads="input_layernorm", bias="qkv_bias"),
    writer("self_attn.o_proj", HEADS, normed=True),
    reader("mlp.gate_up_proj", NEURONS, NEURONS, reads="post_attention_layernorm"),
    writer("mlp.down_proj", NEURONS, normed=True),
    norm("input_layernorm"),
    norm("post_attention_layernorm"),
    post_norm("post_self_attn_layernorm"),
    post_norm("post_mlp_layernorm"),
)

# Norms behind attention and MLP only, and of queries and keys over all heads.
OLMO2: Layout = (
    reader("self_attn.q_proj", HEADS, reads=None, bias="qkv_bias"),
    reader("self_attn.k_proj", KV_HEADS, reads=None, bias="qkv_bias"),
    reader("self_attn.v_proj", KV_HEADS, reads=None, bias="qkv_bias"),
    writer("self_attn.o_proj", HEADS, normed=True, bias="output_bias"),
    head_norm("self_attn.q_norm", HEADS),
    head_norm("self_attn.k_norm", KV_HEADS),
    reader("mlp.gate_proj", NEURONS, reads=None),
    reader("mlp.up_proj", NEURONS, reads=None),
    writer("mlp.down_proj", NEURONS, normed=True),
    post_norm("post_attention_layernorm"),
    post_norm("post_feedforward_layernorm"),
)

# Norms before and behind attention and MLP.
GEMMA: Layout = (
    reader("self_attn.q_proj", HEADS, reads="input_layernorm", bias="qkv_bias"),
    reader("self_attn.k_proj", KV_HEADS, reads="input_layernorm", bias="qkv_bias"),
    reader("self_attn.v_proj", KV_HEADS, reads="input_layernorm", bias="qkv_bias"),
    writer("self_attn.o_proj", HEADS, normed=True, bias="output_bias"),
    head_norm("self_attn.q_norm"),
    head_norm("self_attn.k_norm"),
    reader("mlp.gate_proj", NEURONS, reads="pre_feedforward_layernorm"),
    reader("mlp.up_proj", NEURONS, reads="pre_feedforward_layernorm"),
    writer("mlp.down_proj", NEURONS, normed=True),
    norm("input_layernorm"),
    post_norm("post_attention_layernorm"),
    norm("pre_feedforward_layernorm"),
    post_norm("post_feedforward_layernorm"),
)

# A tied matrix takes z once, as the embedding; the final norm, which would bring it again, goes unscaled.
EMBEDDING = Module("model.embed_tokens", (VOCABULARY,), HIDDEN, scale_columns="hidden")
FINAL_NORM = norm("model.norm")
TIED_FINAL_NORM = Module("model.norm", (HIDDEN,))
LM_HEAD = reader("lm_head", VOCABULARY, reads="model.norm")
OUTER: Layout = (EMBEDDING, FINAL_NORM, LM_HEAD)
TIED_OUTER: Layout = (EMBEDDING, TIED_FINAL_NORM)


def rotates(layout: Layout) -> bool:
    """Whether the residual stream can be turned (SliceGPT, section 3): all that reads it does so through a norm whose
    weight can move into the reader, and nothing but matrices write to it."""
    return all(
        module.scale_rows != "residual" if module.is_norm else module.reads or module.columns != HIDDEN
        for module in layout
    )
