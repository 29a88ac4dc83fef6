"""The demo's recipes from text to a final model, small, on one and on two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import REPOSITORY
from tests.forkserver import ForkServer
from tests.texts import DOMAINS, write_domains

TARGET = {
    "num_hidden_layers": 1,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
SOURCE = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


def call(forked: ForkServer, *command: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = forked.run(command, cwd=REPOSITORY, env=environment, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def module(forked: ForkServer, *arguments: str) -> None:
    call(forked, "python", "-m", *arguments)


@pytest.fixture(scope="module")
def prepared(forked: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text of this repository as five domains, a tokenizer trained on it, and the prepared data."""
    folder = tmp_path_factory.mktemp("prepared")
    write_domains(folder / "corpus")
    corpus, tokenizer = str(folder / "corpus"), str(folder / "tokenizer")
    call(forked, "python", "data_prep/train_tokenizer.py", corpus, tokenizer, "--vocab-size", "512")
    sizes = ["--seq-len", "64", "--eval-sequences", "4"]
    call(forked, "python", "data_prep/prepare.py", corpus, str(folder / "data"), "--tokenizer", tokenizer, *sizes)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, pytest.param(2, marks=pytest.mark.dist)])
def test_source_prune_shear_continue_export(
    forked: ForkServer, prepared: Path, tmp_path: Path, num_processes: int
) -> None:
    def train(name: str, *overrides: str) -> None:
        composer = str(Path(sys.executable).with_name("composer"))
        common = [
            f"variables.data={prepared / 'data'}",
            f"variables.run={tmp_path / 'stages' / name}",
            f"tokenizer.name={prepared / 'tokenizer'}",
            "max_seq_len=64",
            "train_loader.dataset.update_interval=3",
            "max_duration=6ba",
            "scheduler.t_warmup=2ba",
            "eval_interval=3ba",
            "save_interval=3ba",
            "global_train_batch_size=4",
            "device_train_microbatch_size=2",
            "device_eval_batch_size=2",
            "precision=fp32",
            "progress_bar=false",
        ]
        recipe = f"yamls/demo-small/{name}.yaml"
        command = [composer, "-n", str(num_processes), "-m", "llmshearing.train", recipe, *common, *overrides]
        if name == "prune" and num_processes == 2:  # by the launcher itself, once
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, timeout=900)
        else:
            call(forked, *command)

    def checkpoint(name: str) -> str:
        return str(tmp_path / "stages" / name / "checkpoints" / "latest-rank0.pt")

    def losses(model: str) -> dict[str, float]:
        out = tmp_path / f"{model}.json"
        folder, data = str(tmp_path / model), str(prepared / "data")
        module(forked, "llmshearing.reference_loss", "eval", folder, data, "--out", str(out))
        return json.loads(out.read_text())["losses"]

    train("source", *(f"model.config.{name}={size}" for name, size in {**SOURCE, "vocab_size": 512}.items()))
    module(forked, "llmshearing.convert", "export", checkpoint("source"), str(tmp_path / "source"))
    references = losses("source")

    train(
        "prune",
        f"model.pretrained={tmp_path / 'source'}",
        "model.expected_config=null",
        f"callbacks.dynamic_batch_loading.reference_losses={tmp_path / 'source.json'}",
        "algorithms.targeted_pruning.warmup=3ba",
        *(f"algorithms.targeted_pruning.target.{name}={size}" for name, size in TARGET.items()),
    )
    module(forked, "llmshearing.convert", "shear", checkpoint("prune"), str(tmp_path / "sheared"))
    rows = [json.loads(line) for line in (tmp_path / "stages" / "prune" / "metrics.jsonl").read_text().splitlines()]
    masked = {d: next(r[k] for r in rows[::-1] if (k := f"metrics/{d}/LanguageCrossEntropy") in r) for d in DOMAINS}
    assert losses("sheared") == pytest.approx(masked, abs=1e-5)  # shearing changes nothing that was evaluated
    assert masked != pytest.approx(references, abs=1e-2)
    record = json.loads((tmp_path / "sheared" / "shearing.json").read_text())
    assert sum(record["samples_used"].values()) == 6 * 4
    assert sum(record["proportions"].values()) == pytest.approx(1)

    shearing = tmp_path / "sheared" / "shearing.json"
    train(
        "continue",
        f"model.pretrained={tmp_path / 'sheared'}",
        "model.expected_config=null",
        f"train_loader.dataset.proportions={shearing}",
        f"train_loader.dataset.start={shearing}",
        f"callbacks.dynamic_batch_loading.reference_losses={tmp_path / 'source.json'}",
    )
    module(forked, "llmshearing.convert", "export", checkpoint("continue"), str(tmp_path / "final"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "final")
    own = AutoTokenizer.from_pretrained(prepared / "tokenizer")
    assert tokenizer.model_max_length == own.model_max_length  # and not that of the sequences trained on
    assert {name: getattr(model.config, name) for name in TARGET} == TARGET
    ids = torch.tensor([tokenizer("def train(self):").input_ids])
    cached = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=2)
    assert torch.equal(cached, model.generate(ids, max_new_tokens=8, do_sample=False, use_cache=False, pad_token_id=2))


def test_bad_recipe_ends_with_one_line_and_exit_code_2(tmp_path: Path, forked: ForkServer) -> None:
    recipe = tmp_path / "recipe.yaml"
    text = (REPOSITORY / "yamls/demo-small/source.yaml").read_text()
    recipe.write_text(text.replace("max_seq_len", "max_seq_length"))
    done = forked.run([sys.executable, "-m", "llmshearing.train", recipe], cwd=REPOSITORY)
    assert done.returncode == 2
    assert "Unknown key" in done.stderr
    assert "Did you mean 'max_seq_len'" in done.stderr
    assert "Traceback" not in done.stderr
