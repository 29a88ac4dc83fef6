"""What the demo found: ``summary.json``, tables, texts side by side and the report."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from demo.commands import ROOT, Way
from llmshearing.architecture.shapes import ModelShape
from llmshearing.convert.commands import open_checkpoint
from llmshearing.fileio import read_json, write_json
from llmshearing.report.__main__ import main as write_report


def write_summary(way: Way, wall_s: Mapping[str, float]) -> None:
    """Write ``summary.json`` and ``report.html`` into the demo's folder, and print what they say.

    Args:
        way: that has run.
        wall_s: seconds of each stage.
    """
    from transformers import AutoConfig

    commands, models = way.commands, way.models
    run = ROOT / commands.run
    folders = {model: commands.source if model == "source" else str(run / model) for model in models}
    losses = {model: read_json(ROOT / commands.losses(model))["losses"] for model in models}
    shapes = {model: ModelShape.from_hf_config(AutoConfig.from_pretrained(folders[model])) for model in models}
    trained = {name: ROOT / commands.stage(name) for name in way.trainings}
    summary: dict[str, Any] = {
        "seed": OmegaConf.load(trained["prune"] / "recipe.yaml").seed,
        "control": way.control,
        "eval_loss": {
            model: {**per_domain, "mean": sum(per_domain.values()) / len(per_domain)}
            for model, per_domain in losses.items()
        },
        "parameters": {model: shape.num_parameters() for model, shape in shapes.items()},
        "tokens": {**way.looked_at, **{name: _tokens(folder / "metrics.jsonl") for name, folder in trained.items()}},
        "wall_s": {stage: round(seconds, 1) for stage, seconds in wall_s.items()},
        "proportions": {name: _proportions(folder) for name, folder in trained.items()},
    }
    named = {folder: model for model, folder in folders.items()}
    named |= {str(commands.run / model): model for model in models}
    for key in ("quality", "speed", "samples"):
        if (path := run / f"{key}.json").is_file():
            summary[key] = _SHORTENED[key](read_json(path), named)
    write_json(run / "summary.json", summary)
    write_report([str(run)])
    _print_tables(summary)
    for prompt, texts in summary.get("samples", {}).items():
        print(f"\n{prompt} ...")
        for model, text in texts.items():
            written = text.removeprefix(prompt).strip()
            print(textwrap.fill(written, 110, initial_indent=f"  {model:9}", subsequent_indent=" " * 11))
    places = ",".join(models if commands.given_source is None else models[1:])
    print(f"\nModels: {run}/{{{places}}}\nReport: {run / 'report.html'}")


def _quality(found: Mapping[str, Any], named: Mapping[str, str]) -> dict[str, dict[str, float]]:
    return {
        named[folder]: {name: entry[name]["mean"] for name in ("agreement", "choices")}
        for folder, entry in found.items()
    }


def _speed(found: Sequence[Mapping[str, Any]], named: Mapping[str, str]) -> dict[str, dict[str, float]]:
    columns = ("prefill_tokens_per_s", "decode_tokens_per_s", "latency_s")
    return {named[entry["model"]]: {name: entry[name] for name in columns} for entry in found}


def _samples(found: Mapping[str, Mapping[str, str]], named: Mapping[str, str]) -> dict[str, dict[str, str]]:
    prompts = next(iter(found.values()))
    return {prompt: {named[folder]: texts[prompt] for folder, texts in found.items()} for prompt in prompts}


_SHORTENED: dict[str, Any] = {"quality": _quality, "speed": _speed, "samples": _samples}


def _tokens(metrics: Path) -> int:
    """Tokens that a stage trained on."""
    with metrics.open(encoding="utf-8") as file:
        return max(json.loads(line).get("tokens", 0) for line in file)


def _proportions(stage: Path) -> dict[str, float]:
    """The mix that a stage ended with."""
    with open_checkpoint(stage / "checkpoints" / "latest-rank0.pt") as checkpoint:
        state = checkpoint.dataset()
    return dict(zip(state["domains"], state["proportions"], strict=True))


def _print_tables(summary: Mapping[str, Any]) -> None:
    columns = list(summary["eval_loss"]["final"])
    print(f"\nEval loss in nats per token, seed {summary['seed']}\n")
    print(f"{'':10}{'parameters':>12}" + "".join(f"{column:>12}" for column in columns))
    for model, per_domain in summary["eval_loss"].items():
        row = "".join(f"{per_domain[column]:12.4f}" for column in columns)
        print(f"{model:10}{summary['parameters'][model]:12,}{row}")
    if quality := summary.get("quality"):
        print(f"\n{'':10}{'agreement with the source':>28}{'right among four continuations':>34}")
        for model, shares in quality.items():
            print(f"{model:10}{shares['agreement']:28.1%}{shares['choices']:34.1%}")
    if speed := summary.get("speed"):
        print(f"\n{'':10}{'tokens/s, prompt':>18}{'tokens/s, new':>18}")
        for model, rates in speed.items():
            print(f"{model:10}{rates['prefill_tokens_per_s']:18,.0f}{rates['decode_tokens_per_s']:18,.1f}")
    print(f"\n{'stage':12}{'tokens':>12}{'seconds':>10}")
    for stage, seconds in summary["wall_s"].items():
        tokens = summary["tokens"].get(stage)
        print(f"{stage:12}{f'{tokens:,}' if tokens else '':>12}{seconds:10.0f}")
    gain = summary["eval_loss"]["control"]["mean"] - summary["eval_loss"]["final"]["mean"]
    budget = sum(summary["tokens"].get(stage, 0) for stage in ("scores", "prune", "fit", "continue"))
    print(
        f"\nAfter {budget:,} tokens the sheared model is {abs(gain):.4f} nats {'better' if gain > 0 else 'WORSE'} "
        f"than the control ({summary['control']}), which had {_of_control(summary['tokens']):,}."
    )


def _of_control(tokens: Mapping[str, int]) -> int:
    """Of all the stages that made the control."""
    return sum(number for stage, number in tokens.items() if stage.startswith("control"))
