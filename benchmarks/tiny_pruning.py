"""Prune a small trained LLaMA on prepared rows of tokens, as the original's recorded run did; three seeds.

``python -m benchmarks.tiny_pruning GOLDEN [--compat upstream|paper] [--lr-schedule follow|constant] [--seeds 1 2 3]``

GOLDEN holds ``tiny_source`` (a Hugging Face folder), ``tiny_data`` (``{train,eval}_<domain>.npy``, rows of token ids)
and ``upstream_tiny_run.json`` (the settings, and what the original reached with them). Prints the sheared models' mean
eval losses beside the original's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer import Trainer
from composer.algorithms import GradientClipping
from composer.optim import CosineAnnealingWithWarmupScheduler, DecoupledAdamW
from streaming import MDSWriter

from llmshearing import ComposerLlama, DynamicBatchLoading, TargetedPruning
from llmshearing.convert.commands import shear
from llmshearing.data.evaluation import build_evaluators
from llmshearing.data.loaders import build_dynamic_streaming_dataloader
from llmshearing.reference_loss.evaluate import evaluate


def write_data(golden: Path, out: Path) -> None:
    """The rows as MDS folders, ``out/{train,eval}/<domain>``."""
    for path in sorted((golden / "tiny_data").glob("*_*.npy")):
        split, domain = path.stem.split("_", 1)
        rows = np.load(path).astype(np.uint16)
        columns = {"tokens": f"ndarray:uint16:{rows.shape[1]}"}
        with MDSWriter(out=str(out / split / domain), columns=columns) as writer:
            for row in rows:
                writer.write({"tokens": row})


def prune(golden: Path, data: Path, out: Path, settings: dict[str, Any], **pruning: Any) -> float:
    """One run with the settings of a recorded one; the mean eval loss of the sheared model."""
    domains, target = settings["set_names"], settings["target"]
    references = dict(zip(domains, settings["target_loss"], strict=True))
    batch, interval = settings["batch"], int(settings["eval_interval"].removesuffix("ba"))
    model = ComposerLlama(pretrained=str(golden / "tiny_source"))
    train = build_dynamic_streaming_dataloader(
        None,
        batch,
        {
            "local": str(data / "train"),
            "proportions": dict(zip(domains, settings["proportion0"], strict=True)),
            "update_interval": interval,
            "shuffle_seed": settings["seed"],
        },
        num_workers=0,
        pin_memory=False,
    )
    algorithm = TargetedPruning(
        {
            "hidden_size": target["d"],
            "num_hidden_layers": target["L"],
            "num_attention_heads": target["H"],
            "intermediate_size": target["I"],
        },
        lr=settings["lag_lr"],
        warmup=settings["lag_warmup"],
        seed=settings["seed"],
        **pruning,
    )
    trainer = Trainer(
        model=model,
        train_dataloader=train,
        eval_dataloader=build_evaluators(str(data / "eval"), domains, batch_size=16),
        eval_interval=settings["eval_interval"],
        max_duration=f"{settings['steps']}ba",
        optimizers=DecoupledAdamW(model.parameters(), lr=settings["lr"], betas=settings["betas"], weight_decay=0.0),
        schedulers=CosineAnnealingWithWarmupScheduler("30ba", alpha_f=0.1),
        algorithms=[algorithm, GradientClipping("norm", settings["grad_clip_norm"])],
        callbacks=[DynamicBatchLoading(references, clip=False)],  # as the original updates
        save_folder=str(out / "checkpoints"),
        save_interval=f"{settings['steps']}ba",
        seed=settings["seed"],
        device="cpu",
        progress_bar=False,
    )
    trainer.fit()
    trainer.close()
    shear(out / "checkpoints" / "latest-rank0.pt", out / "sheared")
    losses = evaluate(str(out / "sheared"), data / "eval", batch_size=16)["losses"]
    return statistics.mean(losses.values())


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Run the seeds, print and return their losses."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tiny_pruning", description=__doc__)
    parser.add_argument("golden", type=Path, metavar="GOLDEN")
    parser.add_argument("--compat", default="upstream")
    parser.add_argument("--lr-schedule", default="follow", help="the original's scheduler moves the masks' rate too")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args(arguments)
    torch.set_flush_denormal(True)
    recorded = json.loads((options.golden / "upstream_tiny_run.json").read_text())
    settings = recorded["runs"][0]["settings"]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        write_data(options.golden, data)
        for seed in options.seeds:
            out = Path(folder) / f"seed{seed}"
            chosen = {"compat": options.compat, "lr_schedule": options.lr_schedule}
            results.append(prune(options.golden, data, out, {**settings, "seed": seed}, **chosen))
            print(f"{options.compat} {options.lr_schedule} seed {seed}: {results[-1]:.4f}", flush=True)
    theirs = recorded["summary"]["pruned_eval_mean"]
    print(f"mean {statistics.mean(results):.4f}; the original's {theirs['mean']:.4f} of {theirs['values']}")
    return results


if __name__ == "__main__":
    main()
