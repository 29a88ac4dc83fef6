"""Speed of generation: what is measured, how the figures hang together, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from llmshearing import inference_speed as module
from llmshearing.errors import InputError
from llmshearing.inference_speed import inference_speed, main
from tests.models import make_config


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A model of one layer and one of eight times its width and depth."""
    folders = []
    for factor in (1, 8):
        folder = tmp_path_factory.mktemp("model") / str(factor)
        sizes = {"hidden_size": 64 * factor, "intermediate_size": 64 * factor, "num_hidden_layers": factor}
        config = AutoConfig.for_model(
            "llama", vocab_size=64, num_attention_heads=2, max_position_embeddings=48, **sizes
        )
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        folders.append(str(folder))
    return folders


def test_figures_of_every_model_batch_size_and_length_hang_together(models: list[str]) -> None:
    found = inference_speed([*models, models[0]], generate=[2, 8], batch_sizes=[1, 3], prompt=4, rounds=1)
    cases = {(entry["model"], entry["batch_size"], entry["generate"]) for entry in found}
    assert len(found) == len(cases) == 8
    for entry in found:
        size, new = entry["batch_size"], entry["generate"]
        seconds = size * 4 / entry["prefill_tokens_per_s"] + size * (new - 1) / entry["decode_tokens_per_s"]
        assert entry["latency_s"] == pytest.approx(seconds)  # of one round
        assert entry["num_parameters"] == AutoModelForCausalLM.from_pretrained(entry["model"]).num_parameters()
        assert (entry["device"] == "cuda") == ("peak_memory_bytes" in entry)


def test_a_model_with_sixty_times_the_work_is_slower(models: list[str]) -> None:
    small, large = inference_speed(models, generate=[32], batch_sizes=[4], prompt=16, rounds=5)
    for rate in ("prefill_tokens_per_s", "decode_tokens_per_s"):
        assert large[rate] < small[rate]


def test_an_irregular_model_of_as_many_parameters_takes_part(tmp_path: Path) -> None:
    config = make_config("llama3", num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    name = str(tmp_path / "model")
    regular, irregular = inference_speed([name], irregular=[name], generate=[4], prompt=4, rounds=1)
    assert (regular["model"], irregular["model"]) == (name, f"{name} (irregular)")
    assert regular["num_parameters"] == irregular["num_parameters"]
    assert len(set(irregular["intermediate_sizes"])) == 4
    assert sum(irregular["intermediate_sizes"]) == 4 * config.intermediate_size
    assert sum(irregular["num_key_value_heads"]) == 4 * 4
    assert "intermediate_sizes" not in regular
    assert irregular["decode_tokens_per_s"] > 0
    single = make_config("llama3", num_hidden_layers=1)
    AutoModelForCausalLM.from_config(single).save_pretrained(tmp_path / "single")
    with pytest.raises(InputError, match="A model of one layer has no irregular one"):
        inference_speed([name], irregular=[str(tmp_path / "single")], generate=[4], prompt=4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU memory is counted otherwise")
def test_peak_memory_on_a_cpu_has_the_weights_the_cache_and_little_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)  # huge pages, which are resident whole
    sizes = {"hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 16}
    config = AutoConfig.for_model("llama", vocab_size=256, max_position_embeddings=512, **sizes)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "model")
    (entry,) = inference_speed(
        [str(tmp_path / "model")], generate=[2], batch_sizes=[4], prompt=64, rounds=1, memory=True
    )
    needed = model.get_memory_footprint() + 2 * 4 * 4 * 65 * 1024 * 4  # keys and values in 4 layers of 4 sequences
    # Libraries load 45 to 70 MB of their own with a model, by the threads; weights held twice would be 176 MB more.
    assert needed < entry["peak_memory_bytes"] < needed + 120e6


def test_what_is_timed_is_generation_with_a_cache(models: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each new token is read alone, and they are those that ``generate`` gives."""
    read: list[torch.Tensor] = []

    def load(name: str, config: Any, *, dtype: str | None) -> PreTrainedModel:
        model = AutoModelForCausalLM.from_pretrained(name).eval()
        forward = model.forward

        def spied(input_ids: torch.Tensor, **settings: Any) -> Any:
            read.append(input_ids)
            return forward(input_ids=input_ids, **settings)

        model.forward = spied
        return model

    monkeypatch.setattr(module, "load_model", load)
    inference_speed(models[:1], generate=[6], prompt=5, rounds=1)
    steps = read[6:]  # of the round that counts
    assert [ids.shape[1] for ids in steps] == [5, 1, 1, 1, 1, 1]
    model = AutoModelForCausalLM.from_pretrained(models[0])
    wanted = model.generate(steps[0], max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(torch.cat(steps, dim=1), wanted[:, :-1])


def test_the_command_writes_json(models: list[str], tmp_path: Path) -> None:
    main([*models, "--generate", "3", "--prompt", "2", "--rounds", "1", "--out", str(tmp_path / "speed.json")])
    assert [entry["model"] for entry in json.loads((tmp_path / "speed.json").read_text())] == models


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"generate": [1]}, "the first new token is the prompt's; give 2 at least"),
        ({"batch_sizes": [0]}, "a batch has a sequence at least"),
        ({"prompt": 0}, "a prompt has a token at least"),
        ({"rounds": 0}, "measure at least once"),
        ({"prompt": 41, "generate": [8]}, "has 48 positions; 41 tokens and 8 new ones do not fit"),
    ],
)
def test_what_cannot_be_measured_is_refused(models: list[str], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        inference_speed(models, **settings)


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Cannot load .* as a Hugging Face causal language model"):
        inference_speed([str(tmp_path)])
