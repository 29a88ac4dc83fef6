"""Answers of several models side by side: whose they are, in which order, where they end, and what is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from llmshearing.answers import answers, main
from llmshearing.errors import InputError
from llmshearing.tune.chats import Chat, read_prompts
from llmshearing.tune.settings import Settings
from llmshearing.tune.train import tune
from tests.tune.small import ANSWERS, LLAMA3, ZEPHYR, make_folder, write_chats, write_prompts


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One that was taught to answer, and a random one of another template."""
    folder = tmp_path_factory.mktemp("models")
    source, random = make_folder(folder / "source", LLAMA3), make_folder(folder / "random", ZEPHYR)
    settings = Settings(batch_size=6, micro_batch_size=6, learning_rate=1e-2, epochs=30.0)
    tune(source, write_chats(folder / "chats"), folder / "taught", settings)
    # What a generation config says about sampling must not count where models are compared.
    GenerationConfig(eos_token_id=1, do_sample=True, temperature=1.5, repetition_penalty=1.3).save_pretrained(random)
    return [str(folder / "taught"), random]


@pytest.fixture
def prompts(tmp_path: Path) -> list[Chat]:
    return read_prompts(write_prompts(tmp_path / "prompts"))


def by_model(lines: list[dict[str, Any]], key: list[dict[str, Any]], model: str) -> list[str]:
    places = [entry["models"].index(model) for entry in key]
    return [line["answers"][place] for line, place in zip(lines, places, strict=True)]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_answers_are_those_of_the_models_that_the_key_names(
    models: list[str], prompts: list[Chat], batch_size: int
) -> None:
    lines, key = answers(models, prompts, max_new_tokens=20, batch_size=batch_size, dtype="float32")
    assert [line["messages"][0]["content"] for line in lines] == list(ANSWERS)
    assert by_model(lines, key, models[0]) == list(ANSWERS.values())
    assert all(entry["ended"][entry["models"].index(models[0])] for entry in key)
    other = by_model(lines, key, models[1])
    assert not set(other) & set(ANSWERS.values())
    assert (lines, key) == answers(models, prompts, max_new_tokens=20, batch_size=batch_size, dtype="float32")


def test_an_answer_that_is_cut_off_is_said_to_be(models: list[str], prompts: list[Chat]) -> None:
    lines, key = answers(models[:1], prompts, max_new_tokens=2)
    assert [entry["ended"] for entry in key] == [[False]] * 3
    assert all(full.startswith(line["answers"][0]) for full, line in zip(ANSWERS.values(), lines, strict=True))


def test_likeliest_tokens_are_taken_whatever_a_generation_config_says(models: list[str], prompts: list[Chat]) -> None:
    lines, _ = answers(models[1:], prompts[:1], max_new_tokens=16, dtype="float32")
    model = AutoModelForCausalLM.from_pretrained(models[1])
    tokenizer = AutoTokenizer.from_pretrained(models[1])
    asked = tokenizer.apply_chat_template(list(prompts[0].messages), add_generation_prompt=True, return_tensors="pt")
    ids = asked
    for _ in range(16):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        if ids[0, -1] == 1:
            break
    wanted = tokenizer.decode(ids[0, asked.shape[1] :], skip_special_tokens=True).strip()
    assert lines[0]["answers"] == [wanted]


def test_the_order_is_drawn_anew_for_every_prompt(models: list[str], prompts: list[Chat]) -> None:
    _, key = answers(models, prompts * 8, max_new_tokens=1, batch_size=24)
    first = sum(entry["models"][0] == models[0] for entry in key)
    assert 4 < first < 20
    assert all(sorted(entry["models"]) == sorted(models) for entry in key)
    _, other = answers(models, prompts * 8, max_new_tokens=1, batch_size=24, seed=1)
    assert key != other


def test_sampling_depends_on_its_seed(models: list[str], prompts: list[Chat]) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.0}
    first, again = (answers(models[1:], prompts, seed=3, **settings) for _ in range(2))
    assert first == again
    assert first != answers(models[1:], prompts, seed=4, **settings)
    assert first[0] != answers(models[1:], prompts, max_new_tokens=12)[0]


def test_the_command_writes_both_files_and_the_judges_names_no_model(models: list[str], tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    main([*models, "--prompts", write_prompts(tmp_path / "prompts"), "--out", str(out), "--max-new-tokens", "20"])
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    key = [json.loads(line) for line in (tmp_path / "answers.key.jsonl").read_text().splitlines()]
    assert by_model(lines, key, models[0]) == list(ANSWERS.values())
    assert [set(line) for line in lines] == [{"messages", "answers"}] * 3


def test_without_an_end_token_it_is_said(
    models: list[str], prompts: list[Chat], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_folder(tmp_path / "endless", LLAMA3, eos_token_id=None)
    with caplog.at_level(logging.WARNING):
        _, key = answers([folder], prompts[:1], max_new_tokens=3)
    assert "has no eos_token_id in its generation config: no answer of it ends by itself" in caplog.text
    assert key[0]["ended"] == [False]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "--max-new-tokens is 0"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"temperature": -1.0}, "--temperature is -1.0"),
        ({"seed": -1}, "--seed is -1"),
        ({"max_new_tokens": 250}, "The prompt in line 1 has .* tokens; with 250 new ones it exceeds the 256 positions"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    models: list[str], prompts: list[Chat], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        answers(models, prompts, **settings)


def test_models_that_cannot_answer_are_refused(models: list[str], prompts: list[Chat], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no chat template. Tune it with llmshearing.tune"):
        answers([make_folder(tmp_path / "base")], prompts)
    with pytest.raises(InputError, match="A model is named twice"):
        answers([models[0], models[0]], prompts)
    with pytest.raises(InputError, match="Cannot load 'nowhere'"):
        answers(["nowhere"], prompts)
