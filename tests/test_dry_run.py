from __future__ import annotations

import re
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmshearing.architecture.shapes import ModelShape
from llmshearing.compute import forward_flops, training_flops
from llmshearing.dry_run import estimates, schedule
from llmshearing.dry_run.report import Devices, dry_run
from llmshearing.errors import InputError
from llmshearing.models.llama import ComposerLlama
from tests.conftest import REPOSITORY
from tests.dry_runs import make_debug_data, recipe_of, run
from tests.forkserver import ForkServer
from tests.models import make_model

ORIGINAL_7B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["global_train_batch_size=12"], "12, which 8 devices cannot share evenly: choose a multiple of 8"),
        (
            ["global_train_batch_size=3", "train_loader.dataset.replication=4"],
            "3, which 2 groups of devices cannot share evenly: choose a multiple of 2",
        ),
        (["train_loader.dataset.replication=3"], "replication is 3, which does not divide 8 devices into groups"),
        (["device_train_microbatch_size=8"], "each of 8 devices gets only 4 of 32 sequences"),
        (["eval_interval=40ba"], "40 batches and the mix is updated every 50.* Set it to 50ba"),
        (["eval_interval=5000sp"], "156.25 batches and the mix is updated every 50"),
        (["eval_loader=null"], "there is no eval_loader"),
        (["scheduler.t_warmup=3200ba"], "scheduler.t_warmup takes 3200 batches, but training has only 3200"),
        (["algorithms.targeted_pruning.warmup=2dur"], "targeted_pruning.warmup takes 6400 batches"),
        (["algorithms.targeted_pruning.search=4000ba"], "targeted_pruning.search takes 4000 batches, but training has"),
        (
            ["algorithms.targeted_pruning.search=500ba"],
            "takes 640 batches, but the search for units has only 500",
        ),
        (["scheduler.t_warmup=soon"], "scheduler.t_warmup is 'soon', which is not a time"),
        (["algorithms.targeted_pruning.target.hidden_size=5000"], "target.hidden_size is 5000, but .* has 4096"),
        (
            ["algorithms.targeted_pruning.target.hidden_size=192"],
            "hidden_size is 192, but learned masks reach 194 to 4087",
        ),
        (["algorithms.targeted_pruning.target.num_attention_heads=20"], "20, which 8 key-value heads cannot share"),
        (["algorithms.targeted_pruning.comapt=paper"], "Did you mean 'compat'"),
        (["callbacks.dynamic_batch_loading.reference_losses={cc: 2.0}"], "reference losses lack domain 'github'"),
        (["max_seq_len=131073"], "max_seq_len is 131073, but the model has 131072 positions"),
        (["precision=amp_fp16"], "amp_fp16 would scale the masks' gradients"),
        (["fsdp_config=null"], "without fsdp_config nothing hands them on.* each of the 8 ranks reads them"),
        (["fsdp_config.activation_chekpointing=true"], "Did you mean 'activation_checkpointing'"),
        (["optimizer.lr=-1"], "-1"),
    ],
)
def test_contradictions_are_named(overrides: list[str], problem: str) -> None:
    text, findings = run(recipe_of("prune", "llama3.1-8b-to-3.6b", *overrides))
    assert "8,030,261,248 parameters" in text
    assert any(re.search(problem, found) for found in findings.problems), findings.problems


def test_all_contradictions_are_reported_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_of("prune", "llama2-7b-to-370m", "dry_run.num_devices=3", "eval_interval=30ba", "device=cpu")
    with pytest.raises(InputError, match=r"cannot run:\n  - .*3 devices cannot share(.|\n)*\n  - eval_interval is 30"):
        dry_run(recipe)
    assert "373,867,520 parameters" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"devices": 3}, "Unknown key in dry_run 'devices'"),
        ({"num_devices": 0}, "num_devices is 0"),
        ({"num_devices": 9, "num_nodes": 2}, "2 nodes cannot share 9 devices evenly"),
    ],
)
def test_what_to_plan_for_is_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Devices.from_recipe(settings)


@pytest.mark.parametrize(("time", "expected"), [("7ba", 7), ("64sp", 2), (f"{3 * 32 * 4096}tok", 3), ("0.25dur", 800)])
def test_times_in_batches(time: str, expected: float) -> None:
    assert schedule.batches(time, recipe_of("prune", "llama2-7b-to-2.7b"), "eval_interval") == expected


def test_epochs_are_refused() -> None:
    with pytest.raises(InputError, match="max_duration is '1ep'.*The training data has no end"):
        run(recipe_of("prune", "llama2-7b-to-2.7b", "max_duration=1ep"))


def test_a_model_that_is_here_is_held_against_the_recipe(tmp_path: Path) -> None:
    make_model("llama2").save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"not the model that this recipe is for: hidden_size is 48, not 64"):
        ComposerLlama(pretrained=str(tmp_path), expected_config={"vocab_size": 96, "hidden_size": 64})
    recipe = recipe_of("prune", "llama2-7b-to-2.7b", f"model.pretrained={tmp_path}")
    with pytest.raises(InputError, match="hidden_size is 48, not 4096"):
        run(recipe)


def test_a_model_that_is_nowhere_needs_its_sizes() -> None:
    with pytest.raises(InputError, match="'nowhere' is not here; give its sizes as model.expected_config"):
        run(recipe_of("demo", "prune", "model.pretrained=nowhere", "model.expected_config=null"))


def saved_bytes(shape: ModelShape, *, layers: int, batch: int, precision: str) -> int:
    """Bytes that autograd keeps in a real forward pass, weights not counted."""
    config = AutoConfig.for_model(**{**shape.to_dict(), "num_hidden_layers": layers})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # holds it, so that its address stays its own
        return tensor

    ids = torch.zeros((batch, 128), dtype=torch.long)
    autocast = torch.autocast("cpu", dtype=torch.bfloat16) if precision == "amp_bf16" else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        output = model(input_ids=ids, labels=ids, use_cache=False)
    assert output.loss.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("precision", ["amp_bf16", "fp32"])
@pytest.mark.parametrize("sizes", [(256, 640, 8, 8), (128, 1024, 8, 2), (512, 640, 8, 4)])
def test_activation_estimate_is_what_a_layer_keeps(sizes: tuple[int, int, int, int], precision: str) -> None:
    hidden, intermediate, heads, groups = sizes
    shape = ModelShape(hidden, intermediate, 1, heads, groups, 32, 512)
    saved = {
        (layers, batch): saved_bytes(shape, layers=layers, batch=batch, precision=precision)
        for layers in (1, 2)
        for batch in (1, 3)
    }
    # A second layer's part, and of that what grows with the tokens: 2 x 128 more of them.
    measured = (saved[2, 3] - saved[1, 3] - saved[2, 1] + saved[1, 1]) / 256
    assert estimates.layer_activation_bytes(shape, precision=precision) == pytest.approx(measured, rel=0.1)


def test_memory_is_shared_out_by_fsdp_and_saved_by_checkpointing() -> None:
    shape = ModelShape(4096, 11008, 32, 32, 32, 128, 32000)

    def memory(**changes: Any) -> estimates.Memory:
        settings = {"seq_len": 4096, "microbatch_size": 2, "num_shards": 8, "sharded": True, "checkpointing": True}
        return estimates.training_memory(shape, **{**settings, **changes})

    assert memory().states == 16 * shape.num_parameters() / 8
    assert memory(sharded=False).states == 16 * shape.num_parameters()
    assert memory(num_shards=16).states == memory().states / 2
    assert memory(checkpointing=False).activations > 10 * memory().activations
    assert memory(microbatch_size=4).activations == 2 * memory().activations


def test_distillation_keeps_one_gradient_of_logits_and_what_is_compared() -> None:
    shape = ModelShape(512, 1024, 4, 8, 4, 64, 50_000)
    settings = {"seq_len": 2048, "microbatch_size": 1, "num_shards": 1, "sharded": False}

    def logits(top_k: int | None, **changes: Any) -> float:
        return estimates.teacher_memory(shape, shape, top_k=top_k, **{**settings, **changes}).logits

    tokens, chunk = 2048, (2 + 4) * 1024 * 50_000
    assert logits(64) == tokens * (64 * 12 + 2 * 50_000) + chunk
    assert logits(None) == tokens * (4 + 2) * 50_000 + chunk
    assert logits(64, precision="fp32") == tokens * (64 * 12 + 4 * 50_000) + chunk
    assert estimates.teacher_memory(shape, shape, top_k=64, **{**settings, "dtype": "float32"}).states == 4 * (
        shape.num_parameters()
    )


def test_compute_is_six_operations_per_weight_and_token() -> None:
    shape = ModelShape(4096, 11008, 32, 32, 32, 128, 32000)
    flops = training_flops(shape, seq_len=1, checkpointing=False)
    assert flops == pytest.approx(6 * (shape.num_parameters() - 32000 * 4096), rel=1e-3)
    # Attention over 4096 positions, half of them masked: 6 * 32 layers * 4096 wide * 4096 long.
    assert training_flops(shape, seq_len=4096, checkpointing=False) - flops == 6 * 32 * 4096 * 4095
    assert training_flops(shape, seq_len=4096, checkpointing=True) == 4 * forward_flops(shape, seq_len=4096)


@pytest.fixture(scope="module")
def debug_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which ``make debug`` has made its data."""
    return make_debug_data(tmp_path_factory.mktemp("debug"))


def test_data_that_is_here_is_checked(debug_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(debug_folder)
    text, findings = run(recipe_of("debug", "prune"), Devices(1))
    assert not findings.absent
    assert not findings.problems
    assert "60 batches of 4 sequences of 128: 30,720" in text
    assert text.count(" passes at the first round's share") == 2
    _, findings = run(recipe_of("debug", "prune", "max_seq_len=64"), Devices(1))
    assert findings.problems == ["The data holds sequences of 128 tokens, but max_seq_len is 64: make them equal."]
    _, findings = run(recipe_of("debug", "prune", "model.config.vocab_size=512"), Devices(1))
    assert "The tokenizer has 1024 tokens but the model's vocab_size is 512" in findings.problems[0]
    shutil.copytree("runs/debug/data/train/code", tmp_path / "code")
    _, findings = run(recipe_of("debug", "prune", f"train_loader.dataset.local={tmp_path}"), Devices(1))
    assert f"There is no data in '{tmp_path}/manual'" in findings.problems[0]


@pytest.mark.slow
def test_the_debug_recipe_trains_and_its_dry_run_does_not(forked: ForkServer, debug_folder: Path) -> None:
    recipe = REPOSITORY / "yamls" / "debug" / "prune.yaml"
    command = [sys.executable, "-m", "llmshearing.train", str(recipe)]
    planned = forked.run([*command, "dry_run=true"], cwd=debug_folder, check=True)
    assert "Dry run of 'debug-prune' for 1 devices" in planned.stdout
    assert not (debug_folder / "runs" / "debug" / "prune").exists()
    forked.run(command, cwd=debug_folder, check=True, timeout=600)
    assert (debug_folder / "runs" / "debug" / "prune" / "checkpoints" / "latest-rank0.pt").exists()


def test_a_teacher_is_counted_where_its_config_is(tmp_path: Path) -> None:
    setting = f"algorithms.source_distillation.teacher={tmp_path}/teacher"
    text, findings = run(recipe_of("prune", "llama2-7b-to-2.7b", setting))
    assert any("teacher" in absent and "are not counted" in absent for absent in findings.absent)
    assert "teacher" not in text
    AutoConfig.for_model("llama", **ORIGINAL_7B).save_pretrained(tmp_path / "teacher")
    with_teacher, findings = run(recipe_of("prune", "llama2-7b-to-2.7b", setting))
    assert findings.problems == []
    assert "teacher 4.49" in with_teacher
    memory = estimates.teacher_memory(
        *[ModelShape(4096, 11008, 32, 32, 32, 128, 32000)] * 2,
        seq_len=4096,
        microbatch_size=2,
        num_shards=8,
        sharded=True,
        top_k=64,
    )
    assert memory.states == 2 * 6_738_415_616 / 8
    assert memory.total / 1e9 == pytest.approx(4.49, abs=0.005)
    AutoConfig.for_model("llama", **{**ORIGINAL_7B, "vocab_size": 64}).save_pretrained(tmp_path / "teacher")
    _, findings = run(recipe_of("prune", "llama2-7b-to-2.7b", setting))
    assert any("has 64 tokens, the model 32000" in problem for problem in findings.problems)
