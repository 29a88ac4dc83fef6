"""The recipes for short budgets, by the commands in their heads, with a tiny model on two FSDP ranks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from llmshearing.architecture.shapes import ModelShape
from llmshearing.compute import forward_flops, training_flops
from llmshearing.report.collect import read_metrics
from tests.conftest import REPOSITORY
from tests.dry_runs import recipe_of
from tests.forkserver import ForkServer
from tests.small_recipes import TARGET, make_model_and_text, run_command, smaller_commands, write_recipe

NAME = "llama2-7b-to-2.7b-short"
# What stands in the recipes -> what does on a small machine.
SMALLER = {
    "CORPUS": "corpus",
    "data/redpajama-llama2": "data/mine",
    "meta-llama/Llama-2-7b-hf": "model",
    "--seq-len 4096": "--seq-len 64",
    "--eval-sequences 500": "--eval-sequences 4 --workers 1",
    "composer -n 8": "composer -n 2",
    f"yamls/prune/{NAME}.yaml": "my/prune.yaml",
    f"yamls/continue/{NAME}.yaml": "my/continue.yaml",
}


def commands() -> list[list[str]]:
    """Those of both recipes' heads in the order to run them."""
    lines = []
    for stage in ("prune", "continue"):
        head = (REPOSITORY / "yamls" / stage / f"{NAME}.yaml").read_text().split("\n\n")[0].replace("\\\n#", "")
        lines += re.findall(r"^# +((?:python|composer) .*)$", head, re.MULTILINE)
    train, prepare, rotate, shear, train_on, export = smaller_commands(lines, SMALLER)
    return [prepare, rotate, train, shear, train_on, export]


@pytest.mark.slow
@pytest.mark.dist
def test_the_short_recipes_end_in_a_distilled_model(
    forked: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = make_model_and_text("llama2")
    write_recipe(
        "prune",
        NAME,
        {
            "model.expected_config": expected,
            "train_loader.dataset.proportions": {"code": 0.5, "manual": 0.5},
            "algorithms.targeted_pruning.target": TARGET,
            "algorithms.targeted_pruning.search": "4ba",
            "callbacks.dynamic_batch_loading.reference_losses": {"code": 2.0, "manual": 2.0},
        },
    )
    write_recipe(
        "continue",
        NAME,
        {
            "model.expected_config": {**expected, **TARGET, "num_key_value_heads": TARGET["num_attention_heads"]},
            "scheduler.t_warmup": "1ba",
            "algorithms.source_distillation.teacher": "model",
            "callbacks.dynamic_batch_loading.reference_losses": {"code": 2.0, "manual": 2.0},
        },
    )
    for command in commands():
        run_command(command, forked)
    run = Path("runs") / NAME
    rotated = load_file(run / "rotated" / "model.safetensors")
    sheared = load_file(run / "sheared" / "model.safetensors")
    name = "model.embed_tokens.weight"
    assert torch.isin(sheared[name], rotated[name]).all()  # the search has trained no weight
    divergence = read_metrics(run / "continue" / "metrics.jsonl")["distillation/divergence"]
    assert len(divergence.values) == 4
    assert (divergence.values > 0).all()
    final = AutoModelForCausalLM.from_pretrained(run / "final")
    assert {key: getattr(final.config, key) for key in TARGET} == TARGET


def test_the_documents_say_what_the_short_recipes_take() -> None:
    """The dry run counts a teacher only where it is; here its shape is that of the recipe that prunes it."""
    prune, after = recipe_of("prune", NAME), recipe_of("continue", NAME)
    teacher, student = (
        ModelShape.from_hf_config(AutoConfig.for_model(**recipe["model"]["expected_config"]))
        for recipe in (prune, after)
    )
    length = after["max_seq_len"]
    tokens = int(after["max_duration"].removesuffix("ba")) * after["global_train_batch_size"] * length
    hours = {
        "training": tokens * training_flops(student, seq_len=length, checkpointing=True) / 150e12 / 3600,
        "teacher": tokens * forward_flops(teacher, seq_len=length) / 150e12 / 3600,
    }
    sentence = " ".join((REPOSITORY / "docs" / "hardware.md").read_text(encoding="utf-8").split())
    found = re.search(rf"`{NAME}`[^.]*?(\S+) GPU-hours of training and (\S+) of its teacher", sentence)
    assert found is not None
    assert [float(number) for number in found.groups()] == pytest.approx(
        [hours["training"], hours["teacher"]], rel=0.02
    )
