"""What work costs, in floating-point operations: noted by what does it, added up by ``llmshearing.report.compute``.

Estimates of matrix products; optimizers, norms and masks are left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmshearing.architecture.shapes import ModelShape
from llmshearing.fileio import write_json
from llmshearing.report.records import COMPUTE


def forward_flops(shape: ModelShape, *, seq_len: int) -> int:
    """Floating-point operations per token of one forward pass, causal attention counted as half."""
    lookup = 0 if shape.tie_word_embeddings else shape.vocab_size * shape.hidden_size
    queries = shape.num_attention_heads * shape.head_dim
    return 2 * (shape.num_parameters() - lookup) + 2 * shape.num_hidden_layers * queries * seq_len


def training_flops(shape: ModelShape, *, seq_len: int, checkpointing: bool) -> int:
    """Per token of one training step: forward, a backward of twice that, and with checkpointing the forward again."""
    return forward_flops(shape, seq_len=seq_len) * (4 if checkpointing else 3)


def write_training_compute(
    folder: str | Path,
    model: ModelShape,
    teacher: ModelShape | None,
    *,
    seq_len: int,
    checkpointing: bool,
    eval_tokens: int,
    scores: float = 0.0,
) -> None:
    """Note what a token of training costs in a run's folder.

    Args:
        folder: of the run.
        model: that trains; with masks on it, all of it computes.
        teacher: that is asked about every token. ``None``: none.
        seq_len: tokens per sequence.
        checkpointing: whether activations are computed twice.
        eval_tokens: of all domains' evaluation data together.
        scores: operations that finding the scores took by which units are chosen.
    """
    forward = forward_flops(model, seq_len=seq_len)
    costs: dict[str, Any] = {
        "model": training_flops(model, seq_len=seq_len, checkpointing=checkpointing),  # per token
        "teacher": forward_flops(teacher, seq_len=seq_len) if teacher is not None else 0,  # per token
        "evaluation": forward * eval_tokens,  # each time
        "scores": scores,
        "num_parameters": model.num_parameters(),
    }
    write_json(Path(folder) / COMPUTE, costs)


def score_flops(model: ModelShape, *, tokens: int, seq_len: int) -> float:
    """Of :mod:`llmshearing.pruning.scoring`: a forward pass, and half of one for each layer that is left out."""
    return tokens * forward_flops(model, seq_len=seq_len) * (1 + model.num_hidden_layers / 2)


def fit_flops(source: ModelShape, target: ModelShape, *, tokens: int, held_out: int, seq_len: int) -> float:
    """Of :mod:`llmshearing.convert.fit`.

    On what is fitted: a forward pass of the source, one of the sheared model, and two times as much for the products of
    its inputs with each other and with what is wanted. On what is held out: one of the source, two of the sheared.
    """
    whole, sheared = (forward_flops(shape, seq_len=seq_len) for shape in (source, target))
    return tokens * (whole + 3 * sheared) + held_out * (whole + 2 * sheared)
