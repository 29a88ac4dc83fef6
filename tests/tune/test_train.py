"""Tuning by trl and peft: what is learned, what is written, going on after a kill, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmshearing.convert.commands import shear
from llmshearing.errors import InputError
from llmshearing.score import score_model
from llmshearing.tune.chats import read_chats
from llmshearing.tune.encode import encode
from llmshearing.tune.resume import checkpoints_of
from llmshearing.tune.settings import Settings
from llmshearing.tune.template import prepare_tokenizer
from llmshearing.tune.train import _trainer, tune
from tests.conftest import REPOSITORY
from tests.data.launch import wait_until
from tests.forkserver import ForkServer
from tests.repeats import write
from tests.tune.small import ANSWERS, LLAMA3, VOCAB_SIZE, make_folder, make_tokenizer, write_chats

SHARED = Path(__file__).parents[3] / "shared"
FAST: dict[str, Any] = {"batch_size": 6, "micro_batch_size": 3, "learning_rate": 1e-2, "epochs": 30.0}


def reply(folder: Path | str, question: str) -> tuple[str, bool]:
    """What stock transformers makes of a question, and whether the model ends by itself."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    message = [{"role": "user", "content": question}]
    asked = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_tensors="pt")
    made = model.generate(asked, attention_mask=torch.ones_like(asked), max_new_tokens=40, do_sample=False)
    new = made[0, asked.shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True), len(new) < 40


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model``, ``chats`` and ``tuned``, of which no test changes anything."""
    folder = tmp_path_factory.mktemp("tuned")
    make_folder(folder / "model", LLAMA3, torch_dtype="float32")
    tune(str(folder / "model"), write_chats(folder / "chats"), folder / "tuned", Settings(**FAST))
    return folder


@pytest.mark.parametrize("question", ANSWERS)
def test_it_answers_with_its_chat_template_and_ends_by_itself(tuned: Path, question: str) -> None:
    assert reply(tuned / "model", question) != (ANSWERS[question], True)
    assert reply(tuned / "tuned", question) == (ANSWERS[question], True)


def test_the_folder_is_the_model_of_the_same_shape_and_says_how_it_came_about(tuned: Path) -> None:
    before, after = (load_file(tuned / name / "model.safetensors") for name in ("model", "tuned"))
    assert {name: tensor.shape for name, tensor in after.items()} == {
        name: tensor.shape for name, tensor in before.items()
    }
    tokenizer = AutoTokenizer.from_pretrained(tuned / "tuned")
    assert (tokenizer.chat_template, len(tokenizer)) == (LLAMA3, VOCAB_SIZE)
    end = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    generation = json.loads((tuned / "tuned/generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"]) == ([end, 1], 1)
    config, source = (json.loads((tuned / name / "config.json").read_text()) for name in ("tuned", "model"))
    assert config["use_cache"]
    assert [config.get(f"{name}_token_id") for name in ("bos", "eos", "pad")] == [0, 1, source.get("pad_token_id")]
    record = json.loads((tuned / "tuned/tuning.json").read_text())
    assert (record["conversations"], record["left_out"], record["end_of_turn"]) == (12, {}, "<|eot_id|>")
    assert len(record["losses"]) == 60
    assert record["losses"][0] > 4 > 0.1 > record["losses"][-1]
    assert not checkpoints_of(tuned / "tuned").exists()
    modes = {path.stat().st_mode & 0o777 for path in (tuned / "tuned").iterdir()}
    assert modes == {0o644}


def test_tokens_of_the_model_stay_its_own_where_the_tokenizer_names_others(tmp_path: Path) -> None:
    """As a tokenizer that was read from another format may: its eos token is no reason to stop at it."""
    make_folder(tmp_path / "model", LLAMA3)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.eos_token = "<s>"
    tokenizer.save_pretrained(tmp_path / "model")
    settings = Settings(**{**FAST, "epochs": 1.0})
    tune(str(tmp_path / "model"), write_chats(tmp_path / "chats", 1), tmp_path / "out", settings)
    end = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert json.loads((tmp_path / "out/generation_config.json").read_text())["eos_token_id"] == [end, 1]
    assert json.loads((tmp_path / "out/config.json").read_text())["eos_token_id"] == 1


def test_settings_of_generation_that_transformers_would_not_write_are_no_obstacle(tmp_path: Path) -> None:
    path = Path(make_folder(tmp_path / "model", LLAMA3)) / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": 1, "temperature": 0.6}))  # which is of no use without do_sample
    settings = Settings(**{**FAST, "epochs": 1.0, "save_interval": 1})
    tune(str(tmp_path / "model"), write_chats(tmp_path / "chats", 1), tmp_path / "out", settings)
    assert json.loads((tmp_path / "out/generation_config.json").read_text())["temperature"] == 0.6


def test_trl_takes_the_loss_on_answers_alone(tuned: Path, tmp_path: Path) -> None:
    """Labels of a batch of unequal lengths, as the model gets them, and the loss that comes of them."""
    tokenizer = make_tokenizer(LLAMA3)
    turns = prepare_tokenizer(tokenizer, "it", vocab_size=VOCAB_SIZE, template=None)
    examples = [encode(chat, tokenizer, turns) for chat in read_chats(write_chats(tmp_path / "chats", 1))]
    model = AutoModelForCausalLM.from_pretrained(tuned / "model")
    record = {"epochs": 1.0, "batch_size": 3, "micro_batch_size": 3, "learning_rate": 1e-3, "warmup": 0.0, "lora": None}
    record |= {"gradient_checkpointing": False, "seed": 1, "save_interval": 5}
    trainer = _trainer(model, tokenizer, turns, examples, tmp_path / "run", record)
    (batch,) = trainer.get_train_dataloader()
    rows = {tuple(ids[seen.bool()].tolist()): labels for ids, seen, labels in
            zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)}  # fmt: skip
    longest = max(len(example.input_ids) for example in examples)
    total, count = 0.0, 0
    for example in examples:
        wanted = [token if answer else -100 for token, answer in
                  zip(example.input_ids, example.completion_mask, strict=True)]  # fmt: skip
        assert rows[tuple(example.input_ids)].tolist() == wanted + [-100] * (longest - len(wanted))
        with torch.no_grad():
            logits = model(torch.tensor([example.input_ids])).logits[0].log_softmax(-1)
        for place, token in enumerate(wanted):
            if token != -100:
                total, count = total - logits[place - 1, token].item(), count + 1
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(total / count, abs=1e-3)


def test_lora_changes_what_it_adapts_and_is_merged(tuned: Path, tmp_path: Path) -> None:
    settings = Settings(**{**FAST, "epochs": 3.0}, lora=4, keep_adapter=True)
    tune(str(tuned / "model"), tuned / "chats", tmp_path / "out", settings)
    before, after = load_file(tuned / "model/model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if ".layers." in name and "_proj" in name}
    from peft import PeftModel

    ids = torch.arange(40).unsqueeze(0)
    base = AutoModelForCausalLM.from_pretrained(tuned / "model")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits
    assert (merged - base(ids).logits).abs().max() > 1e-2
    adapted = PeftModel.from_pretrained(base, tmp_path / "out" / "adapter")(ids).logits
    assert torch.allclose(merged, adapted, atol=1e-4)


def test_weights_are_written_in_the_models_own_type(tmp_path: Path) -> None:
    make_folder(tmp_path / "model", LLAMA3)
    AutoModelForCausalLM.from_pretrained(tmp_path / "model").bfloat16().save_pretrained(tmp_path / "model")
    settings = Settings(**{**FAST, "epochs": 1.0})
    tune(str(tmp_path / "model"), write_chats(tmp_path / "chats", 1), tmp_path / "out", settings)
    assert {tensor.dtype for tensor in load_file(tmp_path / "out/model.safetensors").values()} == {torch.bfloat16}


def test_rounds_and_a_sample_of_conversations_are_taken(tmp_path: Path) -> None:
    rows = [
        {
            "conversations": [
                {"from": who, "value": f"{who} {number} {turn}"} for turn in "ab" for who in ("human", "gpt")
            ]
        }
        for number in range(9)
    ]
    (tmp_path / "chats").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_folder(tmp_path / "model", LLAMA3)

    def run(out: str, **settings: Any) -> dict[str, Any]:
        given = Settings(**{**FAST, "epochs": 1.0, **settings})
        return tune(str(tmp_path / "model"), tmp_path / "chats", tmp_path / out, given)

    whole, first, five, again = (
        run("whole"), run("first", rounds=1), run("five", sample=5), run("again", sample=5),
    )  # fmt: skip
    assert (whole["conversations"], first["conversations"], five["conversations"]) == (9, 9, 5)
    assert whole["answer_tokens"] == pytest.approx(2 * first["answer_tokens"], rel=0.2)
    assert five["examples_digest"] == again["examples_digest"] != whole["examples_digest"]
    with pytest.raises(InputError, match="--sample is 10, but there are 9 conversations"):
        run("more", sample=10)


@pytest.mark.skipif(not (SHARED / "models/stories260K").is_dir(), reason="no ../shared/models/stories260K")
def test_a_model_sheared_from_a_real_one_answers(tmp_path: Path) -> None:
    model, data = str(SHARED / "models/stories260K"), tmp_path / "data"
    write(data / "train/stories", np.load(SHARED / "golden/stories_self/rows.npy")[:64, :128])
    score_model(model, tmp_path / "scores.safetensors", data=data, num_sequences=8)
    target = {"hidden_size": 48, "intermediate_size": 128}
    shear(model, tmp_path / "sheared", scores=tmp_path / "scores.safetensors", target=target)
    settings = Settings(**{**FAST, "learning_rate": 5e-3}, chat_template="sheared-llama")
    tune(str(tmp_path / "sheared"), write_chats(tmp_path / "chats"), tmp_path / "out", settings)
    for question, answer in ANSWERS.items():
        assert reply(tmp_path / "out", question) == (answer, True)
    assert json.loads((tmp_path / "out/config.json").read_text())["hidden_size"] == 48


SCRIPT = """
import sys
from llmshearing.tune.settings import Settings
from llmshearing.tune.train import tune
given = {"batch_size": 6, "micro_batch_size": 3, "learning_rate": 1e-2, "save_interval": 2, "lora": 4}
settings = Settings(epochs=float(sys.argv[3]), **given)
for out in sys.argv[4:]:
    tune(sys.argv[1], sys.argv[2], out, settings)
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path: Path, forked: ForkServer) -> None:
    model, chats = make_folder(tmp_path / "model", LLAMA3), write_chats(tmp_path / "chats")
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = [sys.executable, "-c", SCRIPT, model, chats, "40"]
    process = forked.start([*command, str(out)], cwd=REPOSITORY)
    saved = checkpoints_of(out) / "checkpoint-4" / "trainer_state.json"
    wait_until(lambda: saved.exists() or process.poll() is not None, "a checkpoint")
    process.kill()
    assert process.wait() == -signal.SIGKILL, process.read()[1]
    steps = [int(path.name.split("-")[1]) for path in checkpoints_of(out).glob("checkpoint-*")]
    assert max(steps) < 80
    torn = checkpoints_of(out) / "checkpoint-79"  # as a kill in the midst of writing leaves it
    torn.mkdir()
    (torn / "adapter_model.safetensors").write_bytes(b"half")
    forked.run([*command, str(out), str(whole)], cwd=REPOSITORY, check=True)
    assert not checkpoints_of(out).exists()
    for name in ("model.safetensors", "tuning.json", "generation_config.json", "config.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def test_checkpoints_of_another_run_are_refused(tuned: Path, tmp_path: Path) -> None:
    folder = checkpoints_of(tmp_path / "out")
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps({"seed": 5}))
    with pytest.raises(InputError, match="holds the checkpoints of a run with another .*batch_size.*seed"):
        tune(str(tuned / "model"), tuned / "chats", tmp_path / "out", Settings(**FAST))
    folder = checkpoints_of(tmp_path / "other")
    folder.mkdir()
    (folder / "thesis.txt").touch()
    with pytest.raises(InputError, match="is not of a tuning run. Move it away"):
        tune(str(tuned / "model"), tuned / "chats", tmp_path / "other", Settings(**FAST))
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_a_loss_that_is_not_finite_ends_the_run_and_writes_nothing(tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"The loss is nan in step \d+. Lower --learning-rate"):
        tune(str(tuned / "model"), tuned / "chats", tmp_path / "out", Settings(**{**FAST, "learning_rate": 1e36}))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": 0}, "--rounds is 0; it must be a whole number of at least 1"),
        ({"sample": 0}, "--sample is 0"),
        ({"lora": 0}, "--lora is 0"),
        ({"max_length": 257}, "--max-length is 257, but '.*' has 256 positions. Lower it"),
        ({"epochs": float("nan")}, "--epochs is nan; it must be above 0"),
        ({"warmup": 1.0}, "--warmup is 1.0; it is a share"),
        ({"learning_rate": -1.0}, "--learning-rate is -1.0; it must be above 0"),
        ({"batch_size": 6, "micro_batch_size": 4}, "--micro-batch-size is 4, which does not divide --batch-size, 6"),
        ({"save_interval": 0}, "--save-interval is 0"),
        ({"seed": -1}, "--seed is -1"),
        ({"keep_adapter": True}, "--keep-adapter is given, but without --lora there is no adapter"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    tuned: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        tune(str(tuned / "model"), tuned / "chats", tmp_path / "out", Settings(**settings))
    assert list(tmp_path.iterdir()) == []


def test_several_processes_are_refused(tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="WORLD_SIZE is 2, but tuning runs in one process"):
        tune(str(tuned / "model"), tuned / "chats", tmp_path / "out")


@pytest.mark.parametrize("package", ["trl", "peft"])
def test_without_the_extra_one_line_says_how_to_get_it(package: str, tmp_path: Path) -> None:
    code = f"import sys; sys.modules['{package}'] = None\nfrom llmshearing.tune.__main__ import main\n"
    code += "main(['model', 'chats', '--out', 'out'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr == f"error: Tuning needs the package {package}: pip install 'llmshearing[tune]'.\n"
