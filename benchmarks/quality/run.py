"""One run of the comparison: from a source model to a loss."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from composer import Trainer
from composer.algorithms import GradientClipping
from composer.core import Algorithm, Callback, Evaluator, State
from composer.loggers import Logger
from composer.optim import CosineAnnealingWithWarmupScheduler, DecoupledAdamW
from torch import Tensor
from transformers import AutoConfig

from benchmarks.quality.layers import with_even_layers
from benchmarks.quality.sources import Source
from benchmarks.quality.ways import Way
from llmshearing import ComposerLlama, DynamicBatchLoading, ModelShape, SourceDistillation, TargetedPruning
from llmshearing.architecture.config import sheared_config
from llmshearing.convert.commands import export, shear
from llmshearing.data.evaluation import build_evaluators
from llmshearing.data.loaders import build_dynamic_streaming_dataloader
from llmshearing.data.prepared import batches, open_split
from llmshearing.pruning.learned import LearnedMasks
from llmshearing.pruning.target import resolve_target
from llmshearing.reference_loss.evaluate import evaluate, mean_loss
from llmshearing.train import cpu_autocast

FINAL_LR = 0.1  # of the peak
SCORED, FITTED = 32, 64  # sequences
LOOKED_AT = FITTED + -(-FITTED // 4)  # those that tell what a fit is worth too
MARKS = (25, 50, 100, 200)  # batches in all after which a model that is sheared is looked at


def run(
    source: Source,
    way: Way,
    seed: int,
    folder: Path,
    *,
    rotated: str,
    scores: Path | None = None,
    steps: int | None = None,
) -> dict[str, Any]:
    """Train one model of the target shape.

    Args:
        source: what to shear and train on.
        way: how.
        seed: of masks, random weights and the order of samples.
        folder: for checkpoints and models.
        rotated: the source after ``convert rotate``.
        scores: of what is sheared, where the way needs them.
        steps: batches in all; the source's number if ``None``.

    Returns:
        Eval losses, means over domains in nats per token: ``sheared`` (right after shearing; ``None`` from scratch),
        ``final``, and ``curve`` by the batches that they come after; batches of ``search`` and ``training``;
        ``tokens_per_parameter`` of the target; ``seconds``.
    """
    begin, steps = time.perf_counter(), source.steps if steps is None else steps
    sheared, record, searched, left = None, None, 0, steps
    if not way.shears:
        model = ComposerLlama(config=_target_config(source))
    elif way.pruning is None:
        searched = -(-SCORED // source.batch_size)
        pretrained = rotated if way.rotated else source.model
        if way.even:
            layers = source.target["num_hidden_layers"]
            scores = with_even_layers(cast(Path, scores), layers, folder / "scores.safetensors")
        shear(pretrained, folder / "sheared", scores=scores, target=source.target, **_fit(source, way))
    else:
        named = {"all": steps, "third": steps // 3, "search": source.search, "extra": steps // 2}
        searched = way.stage if isinstance(way.stage, int) else named[way.stage]
        pretrained = rotated if way.rotated else source.model
        pruning, start = TargetedPruning(source.target, seed=seed, **way.pruning), None
        if way.start:
            importance = TargetedPruning(source.target, selection="importance", search=f"{way.start}ba")
            model = ComposerLlama(pretrained=pretrained)
            train_stage(source, way, model, way.start, seed, folder / "start", pruning=importance)
            start = importance.masks.final()
        model = ComposerLlama(pretrained=pretrained)
        train_stage(source, way, model, searched - way.start, seed, folder / "prune", pruning=pruning, start=start)
        shear(folder / "prune" / "latest-rank0.pt", folder / "sheared", **_fit(source, way))
        record = str(folder / "sheared" / "shearing.json")
    if way.shears:
        searched += -(-LOOKED_AT // source.batch_size) if way.fitted else 0
        sheared, left = mean_eval_loss(source, folder / "sheared"), steps if way.stage == "extra" else steps - searched
        model = ComposerLlama(pretrained=str(folder / "sheared")) if left else model
    final, curve = sheared, Curve(source, searched)
    if left:
        train_stage(source, way, model, left, seed, folder / "train", record=record, callbacks=[curve])
        export(folder / "train" / "latest-rank0.pt", folder / "final")
        final = mean_eval_loss(source, folder / "final")
    seconds = time.perf_counter() - begin
    return {
        "sheared": sheared,
        "final": final,
        "curve": curve.losses,
        "search": searched,
        "training": left,
        "tokens_per_parameter": _tokens_per_parameter(source, steps),
        "seconds": seconds,
    }


class Curve(Callback):
    """Eval losses of a dense model at :data:`MARKS`, means over domains.

    Args:
        source: whose eval split.
        before: batches that came before the training.
    """

    def __init__(self, source: Source, before: int) -> None:
        self.losses: dict[str, float] = {}
        self._source, self._before = source, before

    @torch.no_grad()
    def batch_end(self, state: State, logger: Logger) -> None:
        """Look at the model if it is time to."""
        batch = self._before + int(state.timestamp.batch)
        if batch not in MARKS:
            return
        model = cast(Any, state.model).model.eval()
        domains = open_split(self._source.data, "eval").values()
        losses = [mean_loss(model, (ids.to(model.device) for ids in batches(domain, 16))) for domain in domains]
        model.train()
        self.losses[str(batch)] = statistics.mean(losses)


def _tokens_per_parameter(source: Source, steps: int) -> float:
    length = next(iter(open_split(source.data, "train").values()))[0]["input_ids"].numel()
    shape = ModelShape.from_hf_config(AutoConfig.from_pretrained(source.model))
    return steps * source.batch_size * length / resolve_target(shape, source.target).num_parameters()


def train_stage(
    source: Source,
    way: Way,
    model: ComposerLlama,
    steps: int,
    seed: int,
    checkpoints: Path,
    *,
    pruning: TargetedPruning | None = None,
    start: Mapping[str, Tensor] | None = None,
    record: str | None = None,
    callbacks: Sequence[Callback] = (),
) -> None:
    """Train ``model`` for ``steps`` batches; ``record`` says what mix and samples to go on from.

    Units that are zero in ``start`` begin as undecided.
    """
    torch.manual_seed(seed)
    domains = source.domains
    even = dict.fromkeys(domains, 1 / len(domains))
    dataset: dict[str, Any] = {
        "local": str(source.data / "train"),
        "proportions": even if record is None else record,
        "update_interval": source.interval,
        "shuffle_seed": seed,
        **({} if record is None else {"start": record}),
    }
    algorithms: list[Algorithm] = [GradientClipping("norm", 1.0)]
    if pruning is not None:
        algorithms.append(pruning)
    searches = pruning is not None and pruning.settings.search is not None  # which trains no weights
    if way.distillation is not None and not searches:
        algorithms.append(SourceDistillation(source.model, **way.distillation))
    dynamic, gpu = source.references is not None, torch.cuda.is_available()
    trainer = Trainer(
        model=model,
        train_dataloader=build_dynamic_streaming_dataloader(
            None, source.batch_size, dataset, num_workers=0, pin_memory=False
        ),
        eval_dataloader=_evaluators(source) if dynamic else None,
        eval_interval=f"{source.interval}ba" if dynamic else "0ba",
        max_duration=f"{steps}ba",
        optimizers=DecoupledAdamW(model.parameters(), lr=source.lr, betas=(0.9, 0.95), weight_decay=0.0),
        schedulers=CosineAnnealingWithWarmupScheduler(f"{min(source.warmup, steps // 4)}ba", alpha_f=FINAL_LR),
        algorithms=algorithms,
        callbacks=[
            DynamicBatchLoading(source.references, **source.steering)
            if dynamic
            else DynamicBatchLoading(update_type="constant"),
            *callbacks,
        ],
        save_folder=str(checkpoints),
        save_interval=f"{steps}ba",
        seed=seed,
        device="gpu" if gpu else "cpu",
        precision="amp_bf16" if gpu and source.bfloat16 else "fp32",
        progress_bar=False,
    )
    for name, chosen in (start or {}).items():
        cast(LearnedMasks, cast(TargetedPruning, pruning).masks).log_alpha[name].data[chosen == 0] = 0.0
    untrained = {name: weight.clone() for name, weight in model.state_dict().items()} if way.untrained else None
    try:
        with cpu_autocast("amp_bf16" if source.bfloat16 else "fp32", trainer.state.device.name):
            trainer.fit()
        if pruning is not None and untrained is not None:
            pruning.masks.decide()
            model.load_state_dict(untrained)
            trainer.save_checkpoint(str(checkpoints / "latest-rank0.pt"))
    finally:
        trainer.close()


def _evaluators(source: Source) -> list[Evaluator]:
    size = min(16, source.steered_by or 16)
    evaluators = build_evaluators(str(source.data / "eval"), source.domains, batch_size=size)
    for evaluator in evaluators:
        evaluator.subset_num_batches = -1 if source.steered_by is None else source.steered_by // size
    return evaluators


def _fit(source: Source, way: Way) -> dict[str, Any]:
    """Options of ``shear``."""
    return {"fit": source.data, "fit_sequences": FITTED} if way.fitted else {}


def _target_config(source: Source) -> dict[str, Any]:
    config = AutoConfig.from_pretrained(source.model)
    target = resolve_target(ModelShape.from_hf_config(config), source.target)
    return sheared_config(config.to_dict(), target, list(range(target.num_hidden_layers)))


def mean_eval_loss(source: Source, folder: str | Path) -> float:
    """Of a Hugging Face folder on the source's eval split: nats per token, mean over domains."""
    return statistics.mean(evaluate(str(folder), source.data / "eval", batch_size=16)["losses"].values())
