"""What the demo found: ``summary.json``, a table, a sample of text and the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from llmshearing.architecture.shapes import ModelShape
from llmshearing.convert.commands import open_checkpoint
from llmshearing.fileio import read_json, write_json
from llmshearing.report.__main__ import main as write_report

MODELS = ("source", "sheared", "final", "control")
TRAINING = ("source", "prune", "continue", "control")


def write_summary(run: Path, wall_s: dict[str, float]) -> None:
    """Write ``run/summary.json`` and ``run/report.html``, and print what they say.

    Args:
        run: the demo's folder.
        wall_s: seconds of each stage.
    """
    from transformers import AutoConfig

    losses = {model: read_json(run / "losses" / f"{model}.json")["losses"] for model in MODELS}
    shapes = {model: ModelShape.from_hf_config(AutoConfig.from_pretrained(run / model)) for model in MODELS}
    recipes = {stage: OmegaConf.load(run / "stages" / stage / "recipe.yaml") for stage in TRAINING}
    summary: dict[str, Any] = {
        "seed": recipes["source"].seed,
        "eval_loss": {
            model: {**per_domain, "mean": sum(per_domain.values()) / len(per_domain)}
            for model, per_domain in losses.items()
        },
        "parameters": {model: shape.num_parameters() for model, shape in shapes.items()},
        "tokens": {stage: _tokens(run / "stages" / stage / "metrics.jsonl") for stage in TRAINING},
        "wall_s": {stage: round(seconds, 1) for stage, seconds in wall_s.items()},
        "proportions": {stage: _proportions(run / "stages" / stage) for stage in TRAINING},
    }
    write_json(run / "summary.json", summary)
    write_report([str(run)])
    _print_table(summary)
    _print_samples(run / "final")
    print(f"\nModels: {run}/{{source,sheared,final,control}}\nReport: {run / 'report.html'}")


def _tokens(metrics: Path) -> int:
    """Tokens that a stage trained on."""
    with metrics.open(encoding="utf-8") as file:
        return max(json.loads(line).get("tokens", 0) for line in file)


def _proportions(stage: Path) -> dict[str, float]:
    """The mix that a stage ended with."""
    with open_checkpoint(stage / "checkpoints" / "latest-rank0.pt") as checkpoint:
        state = checkpoint.dataset()
    return dict(zip(state["domains"], state["proportions"], strict=True))


def _print_table(summary: dict[str, Any]) -> None:
    columns = list(summary["eval_loss"]["final"])
    print(f"\nEval loss in nats per token, seed {summary['seed']}\n")
    print(f"{'':10}{'parameters':>12}" + "".join(f"{column:>12}" for column in columns))
    for model, per_domain in summary["eval_loss"].items():
        row = "".join(f"{per_domain[column]:12.4f}" for column in columns)
        print(f"{model:10}{summary['parameters'][model]:12,}{row}")
    print(f"\n{'stage':12}{'tokens':>12}{'seconds':>10}")
    for stage, seconds in summary["wall_s"].items():
        tokens = summary["tokens"].get(stage)
        print(f"{stage:12}{f'{tokens:,}' if tokens else '':>12}{seconds:10.0f}")
    gain = summary["eval_loss"]["control"]["mean"] - summary["eval_loss"]["final"]["mean"]
    budget = summary["tokens"]["prune"] + summary["tokens"]["continue"]
    print(
        f"\nAfter {budget:,} tokens the sheared model is {abs(gain):.4f} nats {'better' if gain > 0 else 'WORSE'} "
        f"than the control, which had {summary['tokens']['control']:,}."
    )


def _print_samples(folder: Path) -> None:
    """A few lines from the final model, by stock transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    print("\nThe final model writes:")
    for prompt in ("In the beginning", "def __init__(self", "The city is"):
        inputs = tokenizer(prompt, return_tensors="pt")
        output = model.generate(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            max_new_tokens=40,
            do_sample=True,
            top_k=40,
            pad_token_id=tokenizer.eos_token_id,
        )
        text = tokenizer.decode(output[0], skip_special_tokens=True)
        print(f"  {' '.join(text.split())}")
