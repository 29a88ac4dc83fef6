"""The commands of README's *Shear your own model*, in their order, with a tiny model on two FSDP ranks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.conftest import REPOSITORY
from tests.forkserver import ForkServer
from tests.small_recipes import TARGET, make_model_and_text, run_command, smaller_commands, write_recipe

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
# What stands in the README -> what does on a small machine.
SMALLER = {
    "MODEL": "model",
    "--seq-len 4096": "--seq-len 64",
    "--eval-sequences 500": "--eval-sequences 4",
    "--workers 16": "--workers 1",
    "dry_run.num_devices=8": "dry_run.num_devices=2",
    "composer -n 8": "composer -n 2",
}


def commands() -> list[list[str]]:
    """The shell commands of the section, made smaller."""
    section = README.split("## Shear your own model\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    return smaller_commands("".join(blocks).splitlines(), SMALLER)


@pytest.mark.slow
@pytest.mark.dist
def test_shear_your_own_model(forked: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = make_model_and_text("mistral")
    write_recipe(
        "prune",
        "mistral-7b-to-3b",
        {
            "variables.run": "runs/mine/prune",
            "model.expected_config": expected,
            "model.pretrained": "model",
            "tokenizer.name": "model",
            "train_loader.dataset.proportions": {"code": 0.5, "manual": 0.5},
            "algorithms.targeted_pruning.target": TARGET,
            "algorithms.targeted_pruning.warmup": "2ba",
            "scheduler.t_warmup": "1ba",
        },
    )
    write_recipe(
        "continue",
        "mistral-7b-to-3b",
        {
            "variables.run": "runs/mine/continue",
            "variables.sheared": "runs/mine/sheared",
            "model.expected_config": {**expected, **TARGET},
            "scheduler.t_warmup": "1ba",
        },
    )
    outputs = [run_command(command, forked) for command in commands()]
    assert sum("Dry run of " in output for output in outputs) == 1
    assert not any("not here" in output for output in outputs)  # all that the recipes name had been made by then
    assert Path("runs/mine/prune/checkpoints/latest-rank0.pt").resolve().is_dir()  # sharded
    record = json.loads(Path("runs/mine/sheared/shearing.json").read_text())
    assert sum(record["samples_used"].values()) == 4 * 8
    final = AutoModelForCausalLM.from_pretrained("runs/mine/final")
    assert {key: getattr(final.config, key) for key in TARGET} == TARGET
    assert Path("runs/mine/final/tokenizer.json").exists()
    assert list(Path("runs/mine/prune").glob("*.html"))
