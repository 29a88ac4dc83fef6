"""A real, tiny training run on the data of helpers.py; ``composer -n N -m tests.data.training`` runs it on ranks."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from composer import Callback, Logger, State, Trainer
from composer.metrics.nlp import LanguageCrossEntropy
from composer.models import HuggingFaceModel
from composer.utils import dist, get_device
from composer.utils.parallelism import FSDP2Config
from transformers import LlamaConfig, LlamaForCausalLM

from llmshearing.data import opening
from llmshearing.data.callback import DynamicBatchLoading
from llmshearing.data.evaluation import build_evaluators
from llmshearing.data.loaders import build_dynamic_streaming_dataloader
from tests.data.helpers import Numbers, numbers

PROPORTIONS = {"code": 0.5, "web": 0.3, "books": 0.2}
REFERENCES = {"code": 4.0, "web": 4.6, "books": 5.2}
GLOBAL_BATCH = 12  # for 1, 2, 3 or 4 ranks
ROUND = 4


def tiny_model() -> HuggingFaceModel:
    """A LLaMA that trains in milliseconds."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=256, max_position_embeddings=16))
    return HuggingFaceModel(model, metrics=[], eval_metrics=[LanguageCrossEntropy()], use_logits=True)


class Recorder(Callback):
    """Keeps what was trained on and how the mix went.

    Args:
        pause: seconds that every batch takes longer.
        crash_at: batch at which to raise. ``None``: none.
    """

    def __init__(self, *, pause: float = 0.0, crash_at: int | None = None) -> None:
        self.batches: list[Numbers] = []
        self.proportions: list[list[float]] = []
        self.pause = pause
        self.crash_at = crash_at

    def batch_start(self, state: State, logger: Logger) -> None:
        self.batches.append(numbers(state.batch))
        time.sleep(self.pause)
        if self.crash_at is not None and state.timestamp.batch >= self.crash_at:
            raise RuntimeError("crashed on purpose")

    def eval_after_all(self, state: State, logger: Logger) -> None:
        self.proportions.append(list(state.train_dataloader.dataset.rounds._newest.proportions))


def make_trainer(
    train_data: Path,
    eval_data: Path,
    recorder: Recorder,
    *,
    duration: str = "12ba",
    dataset: dict[str, Any] | None = None,
    loader: dict[str, Any] | None = None,
    steer: Any = None,
    eval_interval: str = f"{ROUND}ba",
    label_prefix: str = "",
    **settings: Any,
) -> Trainer:
    """A trainer over ``train_data`` with :class:`DynamicBatchLoading`, or its settings; ``steer=False``: without."""
    model = tiny_model()
    shape = {"local": str(train_data), "proportions": PROPORTIONS, "update_interval": ROUND, "vocab_size": 256}
    train_loader = build_dynamic_streaming_dataloader(
        None,
        GLOBAL_BATCH * (dataset or {}).get("replication", 1) // dist.get_world_size(),
        {**shape, "shuffle_block_size": 40, **(dataset or {})},
        **{"num_workers": 0, **(loader or {})},
    )
    evaluators = build_evaluators(str(eval_data), PROPORTIONS, batch_size=2)
    for evaluator in evaluators:
        evaluator.label = label_prefix + evaluator.label
    if isinstance(steer, dict):
        steer = DynamicBatchLoading(**steer)
    callbacks: list[Callback] = [] if steer is False else [steer or DynamicBatchLoading(REFERENCES)]
    return Trainer(
        model=model,
        train_dataloader=train_loader,
        eval_dataloader=evaluators,
        eval_interval=eval_interval,
        max_duration=duration,
        optimizers=torch.optim.AdamW(model.parameters(), 1e-2),
        callbacks=[*callbacks, recorder],
        device="cpu",
        progress_bar=False,
        **settings,
    )


def main() -> None:
    """Train as the JSON in the first argument says; each rank writes what it saw into the folder ``out``."""
    torch.set_flush_denormal(True)
    job = json.loads(sys.argv[1])
    out = Path(job.pop("out"))
    recorder = Recorder(**job.pop("recorder", {}))
    if "fsdp" in job:
        job["parallelism_config"] = {"fsdp": FSDP2Config(**job.pop("fsdp"))}
    opening._TURN = job.pop("turn", opening._TURN)
    opening._MEMORY = job.pop("memory", opening._MEMORY)
    dist.initialize_dist(get_device("cpu"), timeout=60)
    data = Path(job.pop("train_data")), Path(job.pop("eval_data"))
    trainer = make_trainer(*data, recorder, **job)
    (out / f"pid{dist.get_global_rank()}").write_text(str(os.getpid()))
    trainer.fit()
    metrics = {
        domain: {name: float(value) for name, value in metric["LanguageCrossEntropy"].metric_state.items()}
        for domain, metric in trainer.state.eval_metrics.items()
    }
    seen = {"batches": recorder.batches, "proportions": recorder.proportions, "metrics": metrics}
    (out / f"rank{dist.get_global_rank()}.json").write_text(json.dumps(seen))
    trainer.close()


if __name__ == "__main__":
    main()
