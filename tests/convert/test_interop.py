"""The folders in the hands of the field's tools. Those that are not in the lock are tried where they are installed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmshearing.convert.commands import shear
from tests.convert.checkpoints import pruned
from tests.convert.tokenizers import make_tokenizer
from tests.models import token_ids


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
