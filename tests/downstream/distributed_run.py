"""One run of test_callback on every rank, with the callback and without: ``composer -n 2 -m ... OUT {json}``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from composer.core import Callback
from composer.loggers import InMemoryLogger
from composer.utils import dist
from composer.utils.parallelism import FSDP2Config

from llmshearing.downstream.callback import DownstreamEvaluation, inner, is_sharded
from llmshearing.errors import InputError
from tests.downstream.helpers import words
from tests.training import logged, make_trainer


def main(out: str, options: str) -> None:
    """Write ``OUT/rank<r>.json``: what was logged, and losses."""
    torch.set_flush_denormal(True)
    settings = json.loads(options)

    def train(*callbacks: Callback) -> Any:
        parallel = {"parallelism_config": {"fsdp": FSDP2Config()}} if settings["fsdp"] else {}
        trainer = make_trainer(callbacks=[*callbacks], duration="5ba", **parallel)
        inner(trainer.state).tokenizer = words()
        trainer.fit()
        return trainer

    without = train()
    # An odd number of questions: one rank has one more.
    trainer = train(DownstreamEvaluation(settings["data"], interval="2ba", limit=9, eval_batch_size=4))
    (memory,) = (logger for logger in trainer.logger.destinations if isinstance(logger, InMemoryLogger))
    try:
        generated: Any = logged(
            train(DownstreamEvaluation(settings["generation"], interval="2ba")), "downstream/next/exact_match"
        )
    except InputError as error:
        generated = str(error)
    result = {
        "generated": generated,
        "logged": {name: logged(trainer, name) for name in memory.data if name.startswith("downstream/")},
        "losses": logged(trainer, "loss/train/total"),
        "losses_without": logged(without, "loss/train/total"),
        "sharded": is_sharded(trainer.state.model),
    }
    (Path(out) / f"rank{dist.get_global_rank()}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
