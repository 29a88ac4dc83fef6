"""``init_device: mixed`` in the shipped recipes: one rank reads the weights, and nothing else changes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from llmshearing import ComposerLlama
from llmshearing.convert.commands import shear
from llmshearing.errors import InputError
from tests.conftest import REPOSITORY
from tests.convert.tokenizers import make_tokenizer
from tests.data.helpers import SEQ_LEN, write_domain
from tests.forkserver import ForkServer
from tests.models import SIZES, make_model

RECIPE = "yamls/prune/llama2-7b-to-1.3b.yaml"
RECIPES = sorted((REPOSITORY / "yamls").rglob("*.yaml"))
VOCAB_SIZE = 256  # of write_domain's rows
RANK = "${oc.env:RANK}"  # resolved by each process for itself


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of the recipe's domains, a tokenizer, and a model: with weights in 0, without in 1."""
    folder = tmp_path_factory.mktemp("inputs")
    domains = OmegaConf.load(REPOSITORY / RECIPE).train_loader.dataset.proportions
    for number, domain in enumerate(domains):
        write_domain(folder / "data" / "train" / domain, number, 64)
        write_domain(folder / "data" / "eval" / domain, number, 4)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<{number}>" for number in range(VOCAB_SIZE - len(tokenizer))])
    tokenizer.save_pretrained(folder / "tokenizer")
    model = make_model("llama2", vocab_size=VOCAB_SIZE)
    model.save_pretrained(folder / "0")
    model.config.save_pretrained(folder / "1")
    return folder


def train(
    forked: ForkServer, inputs: Path, run: Path, *overrides: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The recipe on two ranks, with its own fsdp_config and everything else small."""
    sizes = {**SIZES, "vocab_size": VOCAB_SIZE, "num_key_value_heads": 8}
    target = {"num_hidden_layers": 2, "hidden_size": 24, "intermediate_size": 32, "num_attention_heads": 4}
    small: dict[str, Any] = {
        "variables.data": inputs / "data",
        "variables.run": run,
        "tokenizer.name": inputs / "tokenizer",
        "max_seq_len": SEQ_LEN,
        **{f"algorithms.targeted_pruning.target.{name}": size for name, size in target.items()},
        "algorithms.targeted_pruning.warmup": "2ba",
        "scheduler.t_warmup": "1ba",
        "train_loader.num_workers": 0,
        "train_loader.dataset.update_interval": 2,
        "max_duration": "4ba",
        "eval_interval": "2ba",
        "save_interval": "2ba",
        "global_train_batch_size": 8,
        "device_eval_batch_size": 2,
        "precision": "fp32",
        "log_to_console": "false",
    }
    expected = OmegaConf.load(REPOSITORY / RECIPE).model.expected_config
    small |= {f"model.expected_config.{name}": sizes[name] for name in expected if name in sizes}
    return forked.run(
        [
            *("composer", "-n", "2", "-m", "llmshearing.train", RECIPE),
            *(f"{name}={value}" for name, value in small.items()),
            *overrides,
        ],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "FSDP_VERSION": "2", **environment},
        timeout=600,
    )


def losses(run: Path) -> list[dict[str, float]]:
    """What the run logged about its training, row by row."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = ("loss/", "metrics/", "data/")
    found = [{name: value for name, value in row.items() if name.startswith(kept)} for row in rows]
    return [row for row in found if row]


@pytest.mark.slow
@pytest.mark.dist
def test_rank_1_needs_no_weights_and_the_run_is_the_same(forked: ForkServer, inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file named"):
        ComposerLlama(pretrained=str(inputs / "1"))
    runs = {
        "mixed": [f"model.pretrained={inputs}/{RANK}"],  # as the recipe has it; rank 1 would fail if it read
        "cpu": [f"model.pretrained={inputs}/0", "model.init_device=cpu"],
    }
    for name, overrides in runs.items():
        done = train(forked, inputs, tmp_path / name, *overrides)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        shear(tmp_path / name / "checkpoints" / "latest-rank0.pt", tmp_path / f"{name}-sheared")
    assert len(losses(tmp_path / "mixed")) >= 4
    assert losses(tmp_path / "mixed") == losses(tmp_path / "cpu")
    files = {file.name: file.read_bytes() for file in (tmp_path / "mixed-sheared").iterdir()}
    assert "model.safetensors" in files
    assert files == {file.name: file.read_bytes() for file in (tmp_path / "cpu-sheared").iterdir()}


@pytest.mark.slow
@pytest.mark.dist
def test_several_ranks_that_nothing_hands_the_weights_to_are_refused_at_once(
    forked: ForkServer, inputs: Path, tmp_path: Path
) -> None:
    for message, overrides, environment in (
        ("without fsdp_config nothing hands them on. Add fsdp_config", ["fsdp_config=null"], {}),
        ("needs FSDP2, but FSDP_VERSION is 1. Unset FSDP_VERSION", [], {"FSDP_VERSION": "1"}),
    ):
        done = train(forked, inputs, tmp_path / "run", f"model.pretrained={inputs}/0", *overrides, **environment)
        assert done.returncode != 0
        assert "model.init_device is 'mixed'" in done.stdout + done.stderr
        assert message in done.stdout + done.stderr
        assert "Loaded" not in done.stdout + done.stderr
        assert not (tmp_path / "run").exists()


def test_one_rank_ignores_it(inputs: Path) -> None:
    model = ComposerLlama(pretrained=str(inputs / "0"), init_device="mixed")
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_recipes_with_fsdp_have_one_rank_read(path: Path) -> None:
    recipe = OmegaConf.load(path)
    assert ("fsdp_config" in recipe) == (recipe.model.get("init_device") == "mixed")
