"""The commands of README's ways to a model of your own, in their order, with a tiny model on two FSDP ranks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.conftest import REPOSITORY
from tests.forkserver import ForkServer
from tests.small_recipes import make_model_and_text, run_command, smaller_commands, write_recipe

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
WANTED = 120_000
SMALL_GPUS = "--devices 2 --gpu-memory 1MB"  # which the model does not fit, so that it is sharded
# What stands in the README -> what does on a small machine.
SMALLER = {
    "MODEL": "model",
    "--seq-len 4096": "--seq-len 64",
    "--eval-sequences 500": "--eval-sequences 4",
    "--workers 16": "--workers 1",
    "dry_run.num_devices=8": "dry_run.num_devices=2",
    "composer -n 8": "composer -n 2",
    "--parameters 1.3e9 --tokens 50e9": f"--parameters {WANTED} --tokens 9e3 --masks learned {SMALL_GPUS}",
}


def commands(title: str, smaller: Mapping[str, str]) -> list[list[str]]:
    """The shell commands of a section, made smaller."""
    section = README.split(f"## {title}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    return smaller_commands("".join(blocks).splitlines(), smaller)


@pytest.mark.slow
@pytest.mark.dist
def test_shear_your_own_model(forked: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_model_and_text("mistral")
    outputs = [run_command(command, forked) for command in commands("Shear your own model", SMALLER)]
    assert sum("Dry run of " in output for output in outputs) == 1
    assert sum("The first one: --target" in output for output in outputs) == 1
    assert not any("not here" in output for output in outputs)  # all that the recipes name had been made by then
    assert Path("runs/mine/prune/checkpoints/latest-rank0.pt").resolve().is_dir()  # sharded
    record = json.loads(Path("runs/mine/sheared/shearing.json").read_text())
    assert sum(record["samples_used"].values()) == 5 * 8
    final = AutoModelForCausalLM.from_pretrained("runs/mine/final")
    assert abs(final.num_parameters() / WANTED - 1) <= 0.02
    assert Path("runs/mine/final/tokenizer.json").exists()
    assert Path("runs/mine/report.html").is_file()


@pytest.mark.slow
@pytest.mark.dist
def test_the_short_way(forked: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = make_model_and_text("mistral")
    target = {"num_hidden_layers": 2, "hidden_size": 40, "intermediate_size": 48, "num_attention_heads": 4}
    write_recipe(
        "continue",
        "mistral-7b-to-3b",
        {
            "variables.run": "runs/mine/continue",
            "variables.sheared": "runs/mine/sheared",
            "model.expected_config": {**expected, **target, "num_key_value_heads": 2},
            "train_loader.dataset.proportions": {"code": 0.5, "manual": 0.5},
            "train_loader.dataset.start": None,
            "scheduler.t_warmup": "1ba",
        },
    )
    for command in commands("Shear your own model", SMALLER)[:2]:
        run_command(command, forked)
    smaller = {
        "MODEL": "model",
        "num_hidden_layers=24": "num_hidden_layers=2",
        "hidden_size=2560": "hidden_size=40",
        "intermediate_size=7168": "intermediate_size=48",
        "num_attention_heads=20": "num_attention_heads=4",
        "num_key_value_heads=5": "num_key_value_heads=2",
        "composer -n 8": "composer -n 2",
    }
    for command in commands("The short way: cut, fit, train on", smaller):
        run_command(command, forked)
    record = json.loads(Path("runs/mine/sheared/shearing.json").read_text())
    assert record["fit"]["tokens"] == record["fit"]["sequences"] * 64
    final = AutoModelForCausalLM.from_pretrained("runs/mine/final")
    assert {key: getattr(final.config, key) for key in target} == target
