"""Distillation from the source model, as a Composer algorithm of its own: with pruning, after it, or without it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from composer.core import Algorithm, Event, State, get_precision_context
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from llmshearing.arguments import number, whole
from llmshearing.divergence import distillation_loss
from llmshearing.errors import InputError
from llmshearing.teacher import Teacher, common_vocabulary, load_own_tokenizer, load_teacher


class SourceDistillation(Algorithm):
    """Train towards the predictions of a teacher, usually the unpruned source, beside the data.

    The loss becomes ``(1 - weight) * loss + weight * distillation_loss``. Works with
    :class:`~llmshearing.TargetedPruning` and in continued pre-training, on any Composer model whose outputs have
    ``logits`` and whose batches have ``input_ids`` and ``labels``. The teacher is no part of the trained model: neither
    optimizer, checkpoints nor clipping see it. Under FSDP rank 0 reads it, and it is sharded, layer by layer, over all
    ranks.

    Args:
        teacher: Hugging Face folder or hub id of a causal LM with the same tokenizer. Where the vocabularies are padded
            to different sizes, as Qwen2.5's are, the tokens that both have are compared.
        weight: share of the loss, above 0 and at most 1.
        temperature: softens both distributions.
        top_k: tokens per position that are compared; the teacher's logits are never held for more.
            ``None``: all, exact, and 4 bytes per logit for the teacher's log-probabilities.
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
        if not isinstance(teacher, (str, Path)) or not str(teacher):
            raise InputError(f"teacher is {teacher!r}; give a Hugging Face folder or hub id.")
        if dtype not in ("bfloat16", "float32"):
            raise InputError(f"dtype is {dtype!r}; the teacher can be 'bfloat16' or 'float32'.")
        rule = "the teacher's share of the loss is a number above 0 and at most 1"
        self.weight = number("weight", weight, rule, within=lambda x: 0 < x <= 1)
        self.temperature = number("temperature", temperature, "it must be a number above 0", within=lambda x: x > 0)
        rule = "compare at least one token, or leave it None for all"
        self.top_k = None if top_k is None else whole("top_k", top_k, rule, least=1)
        self.teacher, self.dtype = str(teacher), dtype
        self._model: Teacher
        self._divergence: list[tuple[Tensor, int]] = []  # of each microbatch, and its sequences

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
            total = torch.stack([divergence * sequences for divergence, sequences in self._divergence]).sum()
            mean = total / sum(sequences for _, sequences in self._divergence)
            dist.all_reduce(mean, reduce_operation="SUM")
            mean /= dist.get_world_size()
            logger.log_metrics({"distillation/divergence": mean.item()})

    def _load(self, state: State) -> None:
        alone = state.fsdp_config is None or dist.get_world_size() == 1
        model = load_teacher(self.teacher, getattr(torch, self.dtype), on_each_rank=alone)
        size = int(model.config.get_text_config().vocab_size)
        student = getattr(getattr(state.model, "model", None), "config", None)
        common = common_vocabulary(
            self.teacher,
            size,
            getattr(student, "vocab_size", size),
            load_own_tokenizer(self.teacher),
            getattr(state.model, "tokenizer", None),
        )
        self._model = Teacher(model, top_k=self.top_k, temperature=self.temperature, vocab_size=common)
        self._model.place(state)

    def _add(self, state: State) -> None:
        batch = cast(Mapping[str, Tensor], state.batch)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
        with torch.no_grad(), get_precision_context(state.precision, state.precision_config):
            teacher, ids = self._model(**inputs)
        if isinstance(self._model, FSDPModule):
            self._model.reshard()  # a root keeps its embeddings gathered, for a backward pass that never comes
        logits = cast(Any, state.outputs)["logits"]
        if logits.shape[-1] > self._model.vocab_size:
            logits = logits[..., : self._model.vocab_size]
        divergence = distillation_loss(logits, teacher, ids, batch["labels"], temperature=self.temperature)
        self._divergence.append((divergence.detach(), len(batch["labels"])))
        state.loss = (1 - self.weight) * cast(Tensor, state.loss) + self.weight * divergence
