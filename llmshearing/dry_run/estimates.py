"""How much memory and compute training needs: pure arithmetic on shapes, for planning."""

from __future__ import annotations

from dataclasses import dataclass

from llmshearing.architecture.shapes import ModelShape
from llmshearing.divergence import CHUNK
from llmshearing.teacher import TOKENS_AT_ONCE

# Bytes that transformers' LLaMA layer with a fused attention kernel keeps for the backward pass, per token and unit of
# hidden size, intermediate size and width of the query heads: two RMSNorms in float32 and the residual stream; gate, up
# and their product; queries, keys and values around their rotation. tests/test_dry_run.py measures them.
_KEPT = {"amp_bf16": (26, 8, 10), "fp32": (24, 16, 20)}
# Per token and vocabulary entry: logits in bfloat16 and float32, their log-softmax, and the gradient in both types.
_PER_LOGIT = 16
_FP32, _BF16, _INT64 = 4, 2, 8
# Tensors of hidden and intermediate size that a teacher's layer holds at a time: without gradients none is kept.
_WITHIN_TEACHER = 3
_ADAM = 2 * _FP32


@dataclass(frozen=True)
class Memory:
    """Estimated peak bytes on one device."""

    states: float  # weights, gradients and Adam's moments in float32
    gathered: float  # copies of weights in use, and under FSDP their gradients before they are reduced
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """All parts, as if their peaks fell together."""
        return self.states + self.gathered + self.activations + self.logits


def training_memory(
    shape: ModelShape,
    *,
    seq_len: int,
    microbatch_size: int,
    num_shards: int,
    sharded: bool,
    checkpointing: bool,
    precision: str = "amp_bf16",
) -> Memory:
    """Peak memory of training with Adam.

    Args:
        shape: the model that trains; for pruning the source.
        seq_len: tokens per sequence.
        microbatch_size: sequences in one forward pass on a device.
        num_shards: devices that share the weights, gradients and moments under FSDP.
        sharded: whether FSDP is used; without it every device holds everything.
        checkpointing: whether each layer's activations are recomputed.
        precision: ``amp_bf16`` or ``fp32``.
    """
    compute = _FP32 if precision == "fp32" else _BF16
    tokens = seq_len * microbatch_size
    parameters = shape.num_parameters()
    states = (2 * _FP32 + _ADAM) * parameters / (num_shards if sharded else 1)
    root, layer = _root_and_layer(shape)
    # FSDP gathers the layer in use and the next one; embeddings and lm_head stay gathered.
    gathered = compute * (2 * layer + root) + _FP32 * (layer + root) if sharded else (_FP32 - compute) * parameters
    within = tokens * layer_activation_bytes(shape, precision=precision)
    boundary = tokens * shape.hidden_size * (compute if sharded else _FP32)
    layers = shape.num_hidden_layers
    activations = layers * boundary + within if checkpointing else layers * within
    return Memory(states, gathered, activations, _PER_LOGIT * tokens * shape.vocab_size)


def teacher_memory(
    teacher: ModelShape,
    student: ModelShape,
    *,
    seq_len: int,
    microbatch_size: int,
    num_shards: int,
    sharded: bool,
    top_k: int | None,
    dtype: str = "bfloat16",
    precision: str = "amp_bf16",
) -> Memory:
    """Bytes that distillation adds on one device, beside :func:`training_memory`.

    Args:
        teacher: its shape.
        student: the model that trains.
        seq_len: tokens per sequence.
        microbatch_size: sequences in one forward pass on a device.
        num_shards: devices that share the teacher under FSDP.
        sharded: whether FSDP is used.
        top_k: tokens per position that are compared.
        dtype: of the teacher's weights.
        precision: in which the student's logits are.
    """
    size = _BF16 if dtype == "bfloat16" else _FP32
    tokens = seq_len * microbatch_size
    root, layer = _root_and_layer(teacher)
    common = min(teacher.vocab_size, student.vocab_size)
    compared = tokens * (common * _FP32 if top_k is None or top_k >= common else top_k * (_FP32 + _INT64))
    gradient = tokens * student.vocab_size * (_FP32 if precision == "fp32" else _BF16)  # until the data's is there
    # The teacher's logits of some tokens, or when it is done the student's in float32: each with what comes of them.
    chunk = max((size + _FP32) * min(tokens, TOKENS_AT_ONCE) * teacher.vocab_size, 2 * _FP32 * CHUNK)
    return Memory(
        states=size * teacher.num_parameters() / (num_shards if sharded else 1),
        gathered=size * (2 * layer + root) if sharded else 0.0,
        activations=tokens * _WITHIN_TEACHER * size * (teacher.hidden_size + teacher.intermediate_size),
        logits=compared + gradient + chunk,
    )


def _root_and_layer(shape: ModelShape) -> tuple[int, float]:
    """Parameters of embedding and output layer, and of a layer."""
    root = shape.vocab_size * shape.hidden_size * (1 if shape.tie_word_embeddings else 2)
    return root, (shape.num_parameters() - root) / shape.num_hidden_layers


def layer_activation_bytes(shape: ModelShape, *, precision: str = "amp_bf16") -> int:
    """Bytes per token that one layer keeps for its backward pass."""
    per_hidden, per_intermediate, per_query = _KEPT["fp32" if precision == "fp32" else "amp_bf16"]
    queries = shape.num_attention_heads * shape.head_dim
    return per_hidden * shape.hidden_size + per_intermediate * shape.intermediate_size + per_query * queries
