"""Distillation from the source model, as a Composer algorithm of its own: with pruning, after it, or without it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, cast

import torch
from composer.core import Algorithm, Event, State, get_precision_context
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers import AutoModelForCausalLM, PreTrainedModel

from llmshearing.errors import InputError

log = logging.getLogger(__name__)

_CHUNK = 1024  # tokens whose logits the teacher holds at a time


class TopLogits(nn.Linear):
    """A teacher's output layer that gives log-probabilities of its likeliest tokens only.

    The logits of all tokens over the whole vocabulary, which can take more memory than the teacher, never exist at
    once.
    """

    top_k: int
    temperature: float

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """``(batch, length, hidden_size)`` to log-probabilities and token ids, each ``(batch, length, top_k)``."""
        parts = []
        for chunk in input.flatten(0, -2).split(_CHUNK):
            logits = super().forward(chunk).float() / self.temperature
            values, ids = logits.topk(self.top_k, sorted=False)
            parts.append((values - logits.logsumexp(-1, keepdim=True), ids))
        values, ids = (torch.cat(part).unflatten(0, input.shape[:-1]) for part in zip(*parts, strict=True))
        return values, ids


def make_teacher(model: PreTrainedModel, *, top_k: int | None, temperature: float) -> None:
    """Freeze a causal LM whose ``logits`` become what :class:`TopLogits` gives; ``top_k`` of ``None`` is all tokens."""
    model.eval().requires_grad_(False)
    head = cast(Any, model.get_output_embeddings())
    head.__class__ = TopLogits
    head.top_k, head.temperature = min(top_k or head.out_features, head.out_features), temperature


def distillation_loss(
    logits: Tensor, teacher: Tensor, ids: Tensor, labels: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """Mean Kullback-Leibler divergence of the student from the teacher, in nats per predicted token.

    ``T**2 * KL(teacher || student)`` with both softened by ``T`` (Hinton et al., 2015). Over the teacher's ``k``
    likeliest tokens and, as one more outcome, all others together; exact where ``k`` is the whole vocabulary.

    Args:
        logits: of the student, ``(batch, length, vocab)``.
        teacher: log-probabilities of the teacher at ``temperature``, ``(batch, length, k)``.
        ids: their tokens, same shape.
        labels: ``(batch, length)``; position i predicts label i + 1, -100 is not counted.
        temperature: ``T``.
    """
    student = logits.float()
    if temperature != 1:  # spares a copy of all logits
        student = student / temperature
    student = student.gather(-1, ids) - student.logsumexp(-1, keepdim=True)
    divergence = (teacher.exp() * (teacher - student)).sum(-1)
    if ids.shape[-1] < logits.shape[-1]:
        rest_teacher, rest_student = _rest(teacher), _rest(student)
        divergence = divergence + rest_teacher * (rest_teacher.log() - rest_student.log())
    counted = labels[:, 1:] != -100
    divergence = torch.where(counted, divergence[:, :-1], 0)  # last: to choose among the logits would copy them
    return temperature**2 * divergence.sum() / counted.sum().clamp(min=1)


def check_vocabulary(teacher: str, teacher_size: int, vocab_size: int) -> None:
    """Check that teacher and model can have the same tokens.

    Raises:
        InputError: their vocabularies differ in size.
    """
    if teacher_size != vocab_size:
        raise InputError(
            f"The teacher '{teacher}' has {teacher_size} tokens, the model {vocab_size}: they need the same tokenizer."
        )


def _rest(log_probabilities: Tensor) -> Tensor:
    """The probability of all tokens but those given."""
    return (1 - log_probabilities.exp().sum(-1)).clamp(min=1e-6)


class SourceDistillation(Algorithm):
    """Train towards the predictions of a teacher, usually the unpruned source, beside the data.

    The loss becomes ``(1 - weight) * loss + weight * distillation_loss``. Works with
    :class:`~llmshearing.TargetedPruning` and in continued pre-training, on any Composer model whose outputs have
    ``logits`` and whose batches have ``input_ids`` and ``labels``. The teacher is no part of the trained model: neither
    optimizer, checkpoints nor clipping see it. Under FSDP2 it is sharded, layer by layer, over all ranks.

    Args:
        teacher: Hugging Face folder or hub id, of the same vocabulary.
        weight: share of the loss, above 0 and at most 1.
        temperature: softens both distributions.
        top_k: tokens per position that are compared; the teacher's logits are never held for more.
            ``None``: all, exact, and as much memory again as the student's logits.
        dtype: of the teacher's weights.

    Raises:
        InputError: a setting out of range; at :attr:`~composer.Event.INIT`, a teacher that is missing or has another
            vocabulary.
    """

    def __init__(
        self,
        teacher: str,
        *,
        weight: float = 0.5,
        temperature: float = 1.0,
        top_k: int | None = 64,
        dtype: str = "bfloat16",
    ) -> None:
        if not 0 < weight <= 1:
            raise InputError(f"weight is {weight}; the teacher's share of the loss is above 0 and at most 1.")
        if not temperature > 0:
            raise InputError(f"temperature is {temperature}; it must be above 0.")
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k is {top_k}; compare at least one token, or leave it None for all.")
        if dtype not in ("bfloat16", "float32"):
            raise InputError(f"dtype is '{dtype}'; the teacher can be 'bfloat16' or 'float32'.")
        self.teacher, self.weight, self.temperature, self.top_k = str(teacher), weight, temperature, top_k
        self.dtype = dtype
        self._model: PreTrainedModel
        self._divergence: list[Tensor] = []

    def match(self, event: Event, state: State) -> bool:
        """INIT loads the teacher, AFTER_LOSS asks it about every microbatch, BATCH_END logs."""
        return event in (Event.INIT, Event.BEFORE_TRAIN_BATCH, Event.AFTER_LOSS, Event.BATCH_END)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Run the step of ``event``, see :meth:`match`."""
        if event == Event.INIT:
            self._load(state)
        elif event == Event.BEFORE_TRAIN_BATCH:  # again on every retry of automatic microbatching
            self._divergence = []
        elif event == Event.AFTER_LOSS:
            self._add(state)
        else:
            mean = torch.stack(self._divergence).mean()
            logger.log_metrics({"distillation/divergence": mean.item()})

    def _load(self, state: State) -> None:
        try:
            model = AutoModelForCausalLM.from_pretrained(self.teacher, torch_dtype=getattr(torch, self.dtype))
        except (OSError, ValueError) as error:
            raise InputError(f"The teacher '{self.teacher}' cannot be loaded: {error}") from error
        student = getattr(getattr(state.model, "model", None), "config", None)
        vocab_size = getattr(student, "vocab_size", model.config.vocab_size)
        check_vocabulary(self.teacher, model.config.vocab_size, vocab_size)
        make_teacher(model, top_k=self.top_k, temperature=self.temperature)
        self._model = _place(model, state)

    def _add(self, state: State) -> None:
        batch = cast(Mapping[str, Tensor], state.batch)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
        with torch.no_grad(), get_precision_context(state.precision, state.precision_config):
            teacher, ids = self._model(**inputs, use_cache=False).logits
        if isinstance(self._model, FSDPModule):
            self._model.reshard()  # a root keeps its embeddings gathered, for a backward pass that never comes
        divergence = distillation_loss(
            cast(Any, state.outputs)["logits"], teacher, ids, batch["labels"], temperature=self.temperature
        )
        self._divergence.append(divergence.detach())
        state.loss = (1 - self.weight) * cast(Tensor, state.loss) + self.weight * divergence


def _place(model: PreTrainedModel, state: State) -> PreTrainedModel:
    """On the device of this rank: whole, or under FSDP2 in shards."""
    if state.fsdp_config is None:
        return state.device.module_to_device(model)
    device = "cuda" if state.device.name == "gpu" else state.device.name
    mesh = torch.distributed.init_device_mesh(device, (dist.get_world_size(),))
    for layer in cast(Any, model).model.layers:
        fully_shard(layer, mesh=mesh)
    return cast(PreTrainedModel, fully_shard(model, mesh=mesh))
