"""A small real Composer Trainer, as a user would build one without recipes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from composer import Trainer
from composer.algorithms import GradientClipping
from composer.core import Algorithm, Callback, State
from composer.loggers import InMemoryLogger, Logger
from composer.metrics import LanguageCrossEntropy
from composer.models import HuggingFaceModel
from composer.optim import CosineAnnealingWithWarmupScheduler, DecoupledAdamW
from composer.utils import dist, get_device
from torch.utils.data import DataLoader

from tests.models import SIZES, make_model

TARGET = {
    "num_hidden_layers": 2,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_key_value_heads": 2,
    "num_attention_heads": 2,
}


def dataset(*, sequences: int = 256, length: int = 16) -> list[dict[str, torch.Tensor]]:
    """Sequences with structure to learn: arithmetic progressions modulo the vocabulary."""
    generator = torch.Generator().manual_seed(1)
    starts, steps = torch.randint(0, SIZES["vocab_size"], (2, sequences), generator=generator)
    rows = (starts[:, None] + (steps[:, None] % 5) * torch.arange(length)) % SIZES["vocab_size"]
    return [{"input_ids": row, "labels": row} for row in rows]


def make_trainer(
    algorithms: Sequence[Algorithm] = (),
    *,
    family: str = "llama3",
    duration: str = "12ba",
    folder: Path | None = None,
    global_batch_size: int = 8,
    **settings: Any,
) -> Trainer:
    """A Trainer with the user's own optimizer, schedule and clipping, on the CPU and any number of ranks."""
    dist.initialize_dist(get_device("cpu"))
    data = dataset()
    loader = DataLoader(
        data,  # type: ignore[arg-type]
        batch_size=global_batch_size // dist.get_world_size(),
        sampler=dist.get_sampler(data, shuffle=False),  # type: ignore[arg-type]
    )
    model = HuggingFaceModel(make_model(family).train(), use_logits=True, eval_metrics=[LanguageCrossEntropy()])
    saving = {} if folder is None else {"save_folder": str(folder), "save_overwrite": True}
    return Trainer(
        model=model,
        train_dataloader=loader,
        optimizers=DecoupledAdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=1e-5),
        algorithms=[GradientClipping("norm", 0.5), *algorithms],
        max_duration=duration,
        device="cpu",
        progress_bar=False,
        seed=7,
        **{
            "schedulers": CosineAnnealingWithWarmupScheduler("2ba", alpha_f=0.1),
            "loggers": InMemoryLogger(),
            **saving,
            **settings,
        },
    )


class Killed(Exception):
    """What stands for a kill in one process."""


class KillAt(Callback):
    """Ends training abruptly when ``batch`` batches are done."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def batch_start(self, state: State, logger: Logger) -> None:
        """Raise at the batch."""
        if state.timestamp.batch == self.batch:
            raise Killed


def logged(trainer: Trainer, key: str) -> list[float]:
    """Values of a metric in the order they were logged."""
    (memory,) = (logger for logger in trainer.logger.destinations if isinstance(logger, InMemoryLogger))
    return [float(value) for _, value in memory.data.get(key, [])]
