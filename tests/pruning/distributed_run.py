"""One training run of test_distributed, on every rank: ``composer -n N -m tests.pruning.distributed_run OUT {json}``.

Writes ``OUT/rank<r>.pt``: per batch log_alpha and multipliers of this rank, and the losses.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from composer.utils.parallelism import FSDP2Config
from torch.distributed.tensor import DTensor

from llmshearing import SourceDistillation, TargetedPruning
from tests.training import TARGET, KillAt, logged, make_trainer


class Record(Callback):
    """Masks and multipliers after every batch."""

    def __init__(self, algorithm: TargetedPruning) -> None:
        self.algorithm = algorithm
        self.rows: list[dict[str, Any]] = []

    def batch_end(self, state: State, logger: Logger) -> None:
        """Copy them."""
        saved = self.algorithm.masks.state_dict()
        self.rows.append({name: saved[name] for name in ("log_alpha", "lambda", "phi")})


def main(out: str, options: str) -> None:
    """Train as the options say; see test_distributed."""
    torch.set_flush_denormal(True)
    settings = json.loads(options)
    kill_at, fsdp, resumes = settings.pop("kill_at", None), settings.pop("fsdp", None), settings.pop("resumes", False)
    algorithm = TargetedPruning(TARGET, warmup="5ba")
    record = Record(algorithm)
    if resumes:
        saving = {"save_interval": "4ba", "run_name": "r", "autoresume": True}
        settings = {"folder": Path(out) / "checkpoints", **saving, **settings}
    teacher = SourceDistillation(settings.pop("teacher"), dtype="float32") if "teacher" in settings else None
    if fsdp:
        settings["parallelism_config"] = {"fsdp": FSDP2Config(**fsdp)}
    callbacks = [record, *([KillAt(kill_at)] if kill_at is not None else [])]
    trainer = make_trainer([algorithm, *([teacher] if teacher else [])], callbacks=callbacks, **settings)
    start = int(trainer.state.timestamp.batch)
    try:
        trainer.fit()
    finally:
        result = {"start": start, "rows": record.rows, "losses": logged(trainer, "loss/train/total")}
        result["sharded"] = trainer.state.fsdp_enabled
        if teacher:
            result["divergence"] = logged(trainer, "distillation/divergence")
            result["teacher_sharded"] = all(isinstance(p, DTensor) for p in teacher._model.parameters())
        torch.save(result, Path(out) / f"rank{dist.get_global_rank()}.pt")
    trainer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
