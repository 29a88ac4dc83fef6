"""``make demo``, the whole method on a real pre-trained model, and ``make demo WAY=paper``, with learned masks.

The source is SmolLM2-135M, or any model of a supported family that is given. ``real`` chooses units by scores and fits
what is left before training, ``paper`` learns masks while it trains; both continue with an adaptive mix of data. The
control is what a sceptic would ask for: random units of the same source, trained by the same recipe on as many tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from demo.commands import ROOT, SEQ_LEN, Commands, Way
from demo.stages import Stage

CONTROL = "random units of the source, trained by the same recipe on as many tokens"
SCORED, FITTED = 10, 24  # sequences
LOOKED_AT = SCORED + FITTED + FITTED // 4  # those that tell what a fit is worth too
REMEDY = (
    "Shear a model that you have by `make demo SOURCE=folder-or-hub-id`, or train a small source here by "
    "`make demo WAY=small`."
)


def make(commands: Commands, *, target: Mapping[str, int] | None = None) -> Way:
    """The way, with paths relative to the repository.

    Args:
        commands: of this way.
        target: of a source that is not the recipes' own.
    """
    run, source = commands.run, commands.source
    prune, go_on = (OmegaConf.load(ROOT / commands.recipe(name)) for name in ("prune", "continue"))
    fitted = commands.name == "demo"
    general = [f"variables.demo={run}", f"variables.source={source}"]
    if target is not None:
        general.append("model.expected_config=null")  # for a model that the recipes do not know
    sizes = [f"algorithms.targeted_pruning.target.{key}={value}" for key, value in (target or {}).items()]
    scores, data = run / "scores.safetensors", run / "data"
    steps = [commands.corpus()]
    if commands.given_source is None:
        fetch = commands.script("demo_model", source)
        steps.append(Stage("source", "fetch a real pre-trained model", [fetch], [run / "source"], remedy=REMEDY))
    steps += [
        commands.prepare(source, eval_sequences=16),
        Stage("losses", "take reference losses", [commands.evaluate("source")], [commands.losses("source")]),
    ]
    if fitted:
        options = ["--data", str(data), "--sequences", str(SCORED), *commands.measured]
        score = commands.module("llmshearing.score", source, scores, *options)
        steps.append(Stage("scores", "score the source's units", [score], [scores]))
    pruning = commands.make("sheared", "prune", by="shear", overrides=[*general, *sizes])
    steps.append(commands.training("prune", "prune it to the target shape, and shear it", pruning, models=["sheared"]))
    if fitted:
        fit = commands.convert("shear", "prune", "fitted", "--fit", data, "--fit-sequences", str(FITTED))
        outputs = [run / "fitted", commands.losses("fitted")]
        title = "shear it, and fit what is left to the source's activations"
        steps.append(Stage("fit", title, [fit, commands.evaluate("fitted")], outputs))
    training = commands.make("final", "continue", by="export", overrides=general)
    steps.append(commands.training("continue", "train it further", training, models=["final"]))
    tokens = _batches(prune) + _batches(go_on) + (-(-LOOKED_AT // go_on.global_train_batch_size) if fitted else 0)
    steps.append(_control(commands, [*general, *sizes], general, batches=tokens - 1))
    models = ("source", "sheared", *(["fitted"] if fitted else []), "final", "control")
    steps += _measures(commands, [model for model in models if model != "fitted"])
    return Way(
        commands,
        steps,
        models,
        trainings=("prune", "continue", "control-prune", "control"),
        control=CONTROL,
        looked_at={"scores": SCORED * SEQ_LEN, "fit": (LOOKED_AT - SCORED) * SEQ_LEN} if fitted else {},
    )


def _control(commands: Commands, pruning: Sequence[str], training: Sequence[str], *, batches: int) -> Stage:
    """Random units, chosen in one batch and trained for as many as all the rest had."""
    settings = "algorithms.targeted_pruning"
    chosen = [f"{settings}.selection=random", f"{settings}.scores=null", f"{settings}.warmup=null"]
    short = ["max_duration=1ba", "save_interval=1ba", "scheduler.t_warmup=0ba", "optimizer.lr=0.0"]
    sheared = commands.run / "control-sheared"
    training = [*training, f"variables.sheared={sheared}", f"max_duration={batches}ba"]
    steps = [
        commands.train("prune", "control-prune", [*pruning, *chosen, *short]),
        commands.convert("shear", "control-prune", sheared.name),
        *commands.make("control", "continue", by="export", stage="control", overrides=training),
    ]
    outputs = [commands.stage("control-prune"), sheared, commands.stage("control"), commands.run / "control"]
    recipes = [ROOT / commands.recipe(name) for name in ("prune", "continue")]
    return Stage("control", f"train {CONTROL}", steps, [*outputs, commands.losses("control")], recipes)


def _measures(commands: Commands, models: Sequence[str]) -> list[Stage]:
    """What a reader sees of the models: the source, the sheared one, what became of it, and the control."""
    run, source = commands.run, commands.source
    folders = [source if model == "source" else str(run / model) for model in models]
    final = str(run / "final")
    wanted = {name: run / f"{name}.json" for name in ("quality", "speed", "samples")}
    quality = ["--source", source, "--data", str(run / "data"), "--sequences", "8", *commands.measured]
    found = {
        "quality": ("ask what a reader would see", ["llmshearing.text_quality", *folders, *quality]),
        "speed": ("time generation", ["llmshearing.inference_speed", source, final, "--generate", "64"]),
        "samples": ("let them write", ["demo.samples", *folders[:2], final]),
    }
    return [
        Stage(name, title, [commands.module(*words, "--out", wanted[name])], [wanted[name]])
        for name, (title, words) in found.items()
    ]


def _batches(recipe: Any) -> int:
    return int(recipe.max_duration.removesuffix("ba"))


def target_for(shape: Any) -> dict[str, int]:
    """What a user would choose for a source: four fifths of the layers and three quarters of the neurons.

    Args:
        shape: a :class:`~llmshearing.ModelShape`.
    """
    step = next(size for size in (128, 64, 32, 16, 8, 4, 2, 1) if shape.intermediate_size >= 8 * size or size == 1)
    return {
        "num_hidden_layers": max(1, round(0.8 * shape.num_hidden_layers)),
        "intermediate_size": max(1, round(0.75 * shape.intermediate_size / step) * step),
    }
