"""Shipped recipes under LLM Foundry, unchanged: ``make test-foundry`` installs it in an environment of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from llmshearing.convert.commands import shear
from llmshearing.report.collect import read_metrics
from llmshearing.score import score_model
from tests.conftest import REPOSITORY
from tests.dry_runs import make_debug_data, recipe_of
from tests.forkserver import ForkServer
from tests.models import make_model

BIN = REPOSITORY / ".venv-foundry" / "bin"
pytestmark = [
    pytest.mark.foundry,
    pytest.mark.slow,
    pytest.mark.skipif(not (BIN / "llmfoundry").exists(), reason="`make test-foundry` installs LLM Foundry first"),
]

DEBUG = str(REPOSITORY / "yamls" / "debug" / "prune.yaml")
TARGET = {
    "num_hidden_layers": 2,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
PRUNED_BY = {(stage, "continue"): f"{stage}-prune" for stage in ("demo", "demo-paper", "demo-small")}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Debug data, and models with its tokenizer: of the debug recipe's shape, and one without grouped queries."""
    folder = make_debug_data(tmp_path_factory.mktemp("foundry"))
    grouped = AutoConfig.for_model(**recipe_of("debug", "prune")["model"]["config"])
    models = {
        "model": make_model("llama2", vocab_size=1024, max_position_embeddings=128),
        "grouped": AutoModelForCausalLM.from_config(grouped),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(folder / "runs" / "debug" / "tokenizer").save_pretrained(folder / name)
    return folder


def foundry(overrides: list[str], folder: Path) -> subprocess.Popen[str]:
    """The debug recipe under LLM Foundry, of the saved model, in a session of its own."""
    output = (folder / "output.txt").open("a")
    return subprocess.Popen(
        [BIN / "llmfoundry", "train", DEBUG, *overrides],
        cwd=folder, env=ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, text=True,
    )  # fmt: skip


def curves(path: Path, prefixes: tuple[str, ...]) -> dict[str, list[float]]:
    """By name as our own trainer logs them, which labels evaluators by domain alone."""
    found = {name.replace("metrics/eval/", "metrics/"): curve for name, curve in read_metrics(path).items()}
    return {name: list(curve.values) for name, curve in found.items() if name.startswith(prefixes)}


def test_a_run_killed_and_resumed_is_that_of_our_own_trainer(world: Path, forked: ForkServer) -> None:
    overrides = ["model.pretrained=grouped", "model.config=null", "save_overwrite=false", "max_duration=20ba"]
    overrides += ["autoresume=true", "save_num_checkpoints_to_keep=-1"]
    done = forked.run(
        ["composer", "-n", "1", "-m", "llmshearing.train", DEBUG, *overrides, "variables.run=runs/ours"],
        cwd=world, env=ENVIRONMENT, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = world / "runs" / "theirs"
    overrides += ["variables.run=runs/theirs", "loggers.metrics_log.folder=runs/theirs"]
    process = foundry(overrides, world)
    while process.poll() is None and not (theirs / "checkpoints" / "ep0-ba10-rank0.pt").exists():
        time.sleep(0.05)
    assert process.poll() is None, (world / "output.txt").read_text()[-3000:]
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert foundry(overrides, world).wait(300) == 0, (world / "output.txt").read_text()[-3000:]

    followed = ("loss/train", "metrics/code", "metrics/manual", "data/", "pruning/")
    ours, resumed = (curves(run / "metrics.jsonl", followed) for run in (world / "runs" / "ours", theirs))
    assert len(ours["data/proportion/code"]) == 5
    assert ours["data/proportion/code"][0] != ours["data/proportion/code"][-1]
    assert resumed.keys() >= ours.keys()
    for name, values in ours.items():
        assert resumed[name] == pytest.approx(values, rel=1e-4, abs=1e-6), name

    shear(theirs / "checkpoints" / "latest-rank0.pt", world / "sheared")
    config = AutoModelForCausalLM.from_pretrained(world / "sheared").config
    target = OmegaConf.load(DEBUG).algorithms.targeted_pruning.target
    assert {name: getattr(config, name) for name in target} == dict(target)


def made_small(stage: str, name: str, run: str) -> list[Any]:
    """A shipped recipe, and overrides by which it runs for two batches, of a tiny model and tiny data."""
    path = REPOSITORY / "yamls" / stage / f"{name}.yaml"
    recipe: Any = OmegaConf.load(path)
    changes: dict[str, Any] = {
        "variables.data": "data",
        "variables.run": f"runs/{run}",
        "tokenizer.name": "model",
        "max_seq_len": 128,
        "max_duration": "2ba",
        "eval_interval": "1ba",
        "save_interval": "2ba",
        "global_train_batch_size": 4,
        "device_train_microbatch_size": 2,
        "scheduler.t_warmup": "0ba",
        "precision": "fp32",  # Composer has bfloat16 on GPUs alone
        "loggers.metrics_log.folder": f"runs/{run}",
        "python_log_level": "warning",  # Foundry is talkative
    }
    if "pretrained" in recipe.model:
        changes |= {"model.pretrained": "model", "model.expected_config": "null"}
    alone = {"attn_implementation": "sdpa", "init_device": "cpu"}  # in one process, without a GPU
    changes |= {f"model.{key}": value for key, value in alone.items() if key in recipe.model}
    if (pruning := recipe.algorithms.get("targeted_pruning")) is not None:
        small = {"warmup": "1ba", "search": "2ba", "scores": "scores.safetensors"}
        if "pretrained" in recipe.model:
            small |= {f"target.{size}": TARGET[size] for size in pruning.target}
        changes |= {
            f"algorithms.targeted_pruning.{key}": value
            for key, value in small.items()
            if OmegaConf.select(pruning, key, throw_on_resolution_failure=False) is not None
        }
    if "source_distillation" in recipe.algorithms:
        changes["algorithms.source_distillation.teacher"] = "model"
    if isinstance(OmegaConf.to_container(recipe)["train_loader"]["dataset"]["proportions"], str):
        before = f"sheared/{PRUNED_BY.get((stage, name), f'prune-{name}')}"
        changes |= {"model.pretrained": before, "tokenizer.name": before}
        changes |= {f"train_loader.dataset.{key}": f"{before}/shearing.json" for key in ("proportions", "start")}
    if (loading := OmegaConf.to_container(recipe)["callbacks"].get("dynamic_batch_loading")) is not None:
        changes["train_loader.dataset.update_interval"] = 1
        if isinstance(loading.get("reference_losses"), str):
            changes["callbacks.dynamic_batch_loading.reference_losses"] = f"losses/{run}.json"
    return [str(path), [f"{key}={value}" for key, value in changes.items()]]


def test_every_shipped_recipe_trains(world: Path) -> None:
    """All pruning first, then what starts from a sheared model, from those that came of it."""
    debug = world / "runs" / "debug" / "data"
    score_model(str(world / "model"), world / "scores.safetensors", data=debug, num_sequences=8)
    recipes = sorted(path.relative_to(REPOSITORY / "yamls") for path in (REPOSITORY / "yamls").glob("*/*.yaml"))
    names = [(path.parent.name, path.stem) for path in recipes]
    domains: set[str] = set()
    (world / "losses").mkdir()
    for stage, name in names:
        labels = [entry["label"] for entry in recipe_of(stage, name)["eval_loader"] or ()]
        losses = {"losses": dict.fromkeys(labels, 2.0)}
        (world / "losses" / f"{stage}-{name}.json").write_text(json.dumps(losses))
        domains |= set(labels)
    for split in ("train", "eval"):
        for number, domain in enumerate(sorted(domains)):
            shutil.copytree(debug / split / ("code", "manual")[number % 2], world / "data" / split / domain)

    first = [(stage, name) for stage, name in names if stage != "continue" and name != "continue"]
    for batch in (first, [pair for pair in names if pair not in first]):
        jobs = [made_small(stage, name, f"{stage}-{name}") for stage, name in batch]
        done = subprocess.run(
            [BIN / "python", REPOSITORY / "tests" / "foundry" / "train_recipes.py"],
            input=json.dumps(jobs), cwd=world, env=ENVIRONMENT, capture_output=True, text=True, timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-500:] + done.stderr[-3000:]
        assert done.stdout.count("trained ") == len(batch)
        for stage, name in batch:
            run = world / "runs" / f"{stage}-{name}"
            assert read_metrics(run / "metrics.jsonl")["loss/train/total"].values.shape == (2,), (stage, name)
            if recipe_of(stage, name)["algorithms"].get("targeted_pruning"):
                (checkpoint,) = (run / "checkpoints").glob(
                    "ep*-ba2*"
                )  # Foundry has another latest one where FSDP would shard
                shear(checkpoint, world / "sheared" / f"{stage}-{name}")
