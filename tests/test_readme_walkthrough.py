"""The commands of README's *Shear your own model*, in their order, with a tiny model on two FSDP ranks."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from data_prep import debug_corpus, train_tokenizer
from tests.conftest import REPOSITORY
from tests.models import make_model

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
TARGET = {"num_hidden_layers": 2, "hidden_size": 24, "intermediate_size": 32, "num_attention_heads": 4}
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
    text = "\n".join(re.findall(r"^```\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL))
    for written, smaller in SMALLER.items():
        assert written in text
        text = text.replace(written, smaller)
    programs = {"python": [sys.executable], "composer": [str(Path(sys.executable).with_name("composer"))]}
    lines = [shlex.split(line) for line in text.splitlines() if line.strip()]
    scripts = {"data_prep/prepare.py": str(REPOSITORY / "data_prep" / "prepare.py")}
    return [[*programs[first], *(scripts.get(word, word) for word in rest)] for first, *rest in lines]


def write_recipe(stage: str, changes: dict[str, Any]) -> None:
    """What the README says of recipes, and a shorter run."""
    recipe = OmegaConf.load(REPOSITORY / "yamls" / stage / "mistral-7b-to-3b.yaml")
    short = {
        "max_seq_len": 64,
        "max_duration": "4ba",
        "eval_interval": "2ba",
        "save_interval": "2ba",
        "global_train_batch_size": 8,
        "train_loader.dataset.update_interval": 2,
        "scheduler.t_warmup": "1ba",
    }
    for key, value in {"variables.data": "data/mine", **short, **changes}.items():
        assert OmegaConf.select(recipe, key, throw_on_resolution_failure=False) is not None, key
        OmegaConf.update(recipe, key, value, merge=False)
    Path("my").mkdir(exist_ok=True)
    OmegaConf.save(recipe, f"my/{stage}.yaml")


@pytest.mark.slow
@pytest.mark.dist
def test_shear_your_own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    debug_corpus.main(["corpus"])
    train_tokenizer.main(["corpus", "tokenizer", "--vocab-size", "512"])
    model = make_model("mistral", vocab_size=512)
    model.save_pretrained("model")
    PreTrainedTokenizerFast.from_pretrained("tokenizer").save_pretrained("model")
    expected = {key: getattr(model.config, key) for key in ("vocab_size", "num_key_value_heads", *TARGET)}
    write_recipe(
        "prune",
        {
            "variables.run": "runs/mine/prune",
            "model.expected_config": expected,
            "model.pretrained": "model",
            "tokenizer.name": "model",
            "train_loader.dataset.proportions": {"code": 0.5, "manual": 0.5},
            "algorithms.targeted_pruning.target": TARGET,
            "algorithms.targeted_pruning.warmup": "2ba",
        },
    )
    write_recipe(
        "continue",
        {
            "variables.run": "runs/mine/continue",
            "variables.sheared": "runs/mine/sheared",
            "model.expected_config": {**expected, **TARGET},
        },
    )
    outputs = []
    for command in commands():
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        outputs.append(done.stdout)
    assert sum("Dry run of " in output for output in outputs) == 1
    assert not any("not here" in output for output in outputs)  # all that the recipes name had been made by then
    assert Path("runs/mine/prune/checkpoints/latest-rank0.pt").resolve().is_dir()  # sharded
    record = json.loads(Path("runs/mine/sheared/shearing.json").read_text())
    assert sum(record["samples_used"].values()) == 4 * 8
    final = AutoModelForCausalLM.from_pretrained("runs/mine/final")
    assert {key: getattr(final.config, key) for key in TARGET} == TARGET
    assert Path("runs/mine/final/tokenizer.json").exists()
    assert list(Path("runs/mine/prune").glob("*.html"))
