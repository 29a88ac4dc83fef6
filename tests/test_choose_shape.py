"""Shapes within a budget: what they may be, how they are ranked, and what is said where a budget cannot be met."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from streaming import MDSWriter
from transformers import AutoConfig

from llmshearing import ModelShape
from llmshearing.choose_shape.__main__ import main
from llmshearing.choose_shape.budget import (
    Budget,
    by_memory,
    by_parameters,
    by_speed,
    cache_bytes,
    read_amount,
    serving_bytes,
)
from llmshearing.choose_shape.candidates import DEPTH, WIDTH, find, stages
from llmshearing.choose_shape.choose import choose
from llmshearing.choose_shape.rank import Guess, target_of
from llmshearing.compute import forward_flops
from llmshearing.errors import InputError
from llmshearing.pruning.scores import Scores, all_groups, mark_of
from llmshearing.pruning.scoring import losses_without_layers, score
from llmshearing.pruning.target import resolve_target
from llmshearing.score import score_model
from tests.models import FAMILIES, SIZES, make_config, make_model, token_ids

SHARED = Path(__file__).parents[2] / "shared"
LLAMA_7B = ModelShape(4096, 11008, 32, 32, 32, 128, 32000)
LLAMA_8B = ModelShape(4096, 14336, 32, 32, 8, 128, 128256)
QWEN3 = ModelShape(1024, 3072, 28, 16, 8, 128, 151936, tie_word_embeddings=True, qk_norm=True, model_type="qwen3")
SMOLLM2 = ModelShape(576, 1536, 30, 9, 3, 64, 49152, tie_word_embeddings=True)


@pytest.mark.parametrize("source", [LLAMA_7B, LLAMA_8B, QWEN3, SMOLLM2], ids=["7B", "8B", "qwen3", "smollm2"])
@pytest.mark.parametrize("share", [0.6, 0.72, 0.9])
@pytest.mark.parametrize(
    "make",
    [
        lambda source, share: by_parameters(source, share * source.num_parameters()),
        lambda source, share: by_memory(source, share * serving_bytes(source, context=4096), context=4096),
        lambda source, share: by_speed(source, 1 / share, context=4096),
    ],
    ids=["parameters", "memory", "speed"],
)
def test_candidates_are_within_the_budget_and_of_even_sizes(
    source: ModelShape, share: float, make: Callable[[ModelShape, float], Budget]
) -> None:
    budget = make(source, share)
    found = find(source, budget)
    assert found.within
    assert found.capped
    assert len(set(found.shapes)) == len(found.shapes) > 0
    for shape in found.shapes:
        assert 0.98 * budget.wanted <= budget.of(shape) <= 1.02 * budget.wanted
        assert shape != source
        assert resolve_target(source, target_of(source, shape)) == shape  # pruning reaches it
        assert shape.num_hidden_layers >= DEPTH * source.num_hidden_layers
        for name in ("hidden_size", "intermediate_size", "num_key_value_heads"):
            assert getattr(shape, name) >= WIDTH * getattr(source, name)
        assert shape.queries_per_group == source.queries_per_group
        assert shape.hidden_size % 64 == shape.intermediate_size % 64 == 0
        if source.num_attention_heads * source.head_dim == source.hidden_size:
            assert shape.num_attention_heads * shape.head_dim == shape.hidden_size


def test_what_a_budget_counts() -> None:
    assert cache_bytes(LLAMA_7B) == 524_288
    assert serving_bytes(LLAMA_7B, context=0) == 2 * 6_738_415_616
    half = by_speed(LLAMA_7B, 2.0, context=2048)
    assert half.wanted == forward_flops(LLAMA_7B, seq_len=2048) / 2


@pytest.mark.parametrize(
    ("text", "suffix", "value"),
    [
        *[("1.3e9", "", 1.3e9), ("1.3B", "", 1.3e9), ("350m", "", 350e6), ("7", "", 7.0)],
        *[("4GB", "B", 4e9), ("4 gb", "B", 4e9), ("800MB", "B", 800e6), ("4000000000", "B", 4e9)],
        *[("2x", "X", 2.0), ("1.5", "X", 1.5)],
    ],
)
def test_amounts_are_read_with_their_units(text: str, suffix: str, value: float) -> None:
    assert read_amount("--size", text, suffix=suffix) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "suffix"),
    [
        *[(text, "") for text in ("", "-3", "0", "many", "4GB", "1e999", "nan")],
        *[("2x", "B"), ("4GiB", "B"), ("2xx", "X"), ("4GB", "X")],
    ],
)
def test_amounts_that_are_none_are_refused(text: str, suffix: str) -> None:
    with pytest.raises(InputError, match=r"--size is '.*'; write it as "):
        read_amount("--size", text, suffix=suffix)


def test_a_plan_takes_half_at_most_in_a_step() -> None:
    assert stages(LLAMA_7B, 4_000_000_000) == [4_000_000_000]
    plan = stages(LLAMA_7B, 1_300_000_000)
    assert plan[-1] == 1_300_000_000
    sizes = [LLAMA_7B.num_parameters(), *plan]
    assert all(after >= before / 2 for before, after in itertools.pairwise(sizes))


def test_budgets_that_cannot_be_met_are_refused_or_said() -> None:
    with pytest.raises(InputError, match=r"The model has 134,515,008 parameters; 200,000,000 is not less\."):
        by_parameters(SMOLLM2, 200e6)
    with pytest.raises(InputError, match="--speed is 0.5x; give more than 1x"):
        by_speed(SMOLLM2, 0.5, context=16)
    with pytest.raises(
        InputError, match="1,000 parameters are too few: with an eighth of every dimension the model has more"
    ):
        find(SMOLLM2, by_parameters(SMOLLM2, 1000))
    coarse = ModelShape(4096, 4, 1, 32, 32, 128, 8)  # two heads with their hidden dimensions are an eighth of it
    found = find(coarse, by_parameters(coarse, 0.95 * coarse.num_parameters()))
    assert not found.within
    assert all(shape.num_parameters() < 0.95 * coarse.num_parameters() for shape in found.shapes)


@pytest.mark.parametrize("family", ["llama2", "qwen3-tied", "granite", "phi3"])
def test_a_guess_is_what_the_units_that_go_carry(family: str) -> None:
    model = make_model(family)
    batches = [token_ids(batch=4, seed=seed) for seed in range(2)]
    scores = score(model, batches)
    source, guess = scores.source, Guess(scores)
    losses = losses_without_layers(model, batches)
    assert guess(source) == pytest.approx(0.0, abs=1e-9)
    three = dataclasses.replace(source, num_hidden_layers=3)
    assert guess(three) == pytest.approx(0.0, abs=1e-6)  # the layer that matters least is the measure
    two = dataclasses.replace(source, num_hidden_layers=2)
    assert guess(two) == pytest.approx(losses.sort().values[1].item() - losses.min().item(), rel=1e-5)
    hidden = scores.units["hidden_size"].sort(descending=True).values
    thin = dataclasses.replace(source, hidden_size=30)
    knows = math.log(source.vocab_size) - losses.min().item()
    expected = max(0.0, knows) * (hidden[30:].sum() / hidden.sum()).item()
    assert guess(thin) == pytest.approx(expected, rel=1e-4)
    sizes = [guess(dataclasses.replace(source, intermediate_size=size)) for size in (20, 40, 60, 80)]
    assert sizes == sorted(sizes, reverse=True)
    fewer = dataclasses.replace(source, num_key_value_heads=1, num_attention_heads=source.queries_per_group)
    assert guess(fewer) > 0


def test_layers_that_carry_nothing_go_first() -> None:
    units = {group.dimension: torch.ones(group.shape) for group in all_groups(SMOLLM2)}
    units["num_hidden_layers"] = torch.cat([torch.full((22,), 4.0), torch.full((8,), 3.0)])
    scores = Scores(SMOLLM2, units, mark_of(torch.zeros(1)))
    guess = Guess(scores)
    deep = dataclasses.replace(SMOLLM2, intermediate_size=1024)
    shallow = dataclasses.replace(SMOLLM2, num_hidden_layers=24)
    assert guess(shallow) == 0.0 < guess(deep)


def write_data(folder: Path, *, number: int = 96, length: int = 32) -> Path:
    rows = np.random.default_rng(0).integers(3, SIZES["vocab_size"], (number, length))
    for split, part in (("train", rows[: number // 2]), ("eval", rows[number // 2 :])):
        with MDSWriter(out=str(folder / split / "text"), columns={"tokens": f"ndarray:uint16:{length}"}) as writer:
            for row in part:
                writer.write({"tokens": row.astype(np.uint16)})
    return folder


@pytest.mark.parametrize("family", ["llama3", "qwen2-tied", "mistral", "granite-tied"])
def test_the_best_few_are_fitted_timed_and_ranked(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model(family).save_pretrained(tmp_path / "model")
    data = write_data(tmp_path / "data")
    model, wanted = str(tmp_path / "model"), 0.7 * make_model(family).num_parameters()
    budget = ["--parameters", str(wanted), "--context", "64"]
    options = ["--data", str(data), "--best", "3", "--time", "--show", "5"]
    main([model, *budget, *options, "--json"])
    found = json.loads(capsys.readouterr().out)
    first = found["candidates"][:3]
    assert [row["fitted_loss"] for row in first] == sorted(row["fitted_loss"] for row in first)
    assert all(row["tokens_per_s"] > 0 for row in (found["source"], *first))
    assert "fitted_loss" not in found["candidates"][3]
    assert all(row["guessed_cost"] >= 0 for row in found["candidates"])
    assert len(found["candidates"]) <= 5

    score_model(model, tmp_path / "scores.safetensors", data=data)
    main([model, *budget, "--scores", str(tmp_path / "scores.safetensors"), "--json", str(tmp_path / "found.json")])
    guessed = json.loads((tmp_path / "found.json").read_text())["candidates"]
    costs = [row["guessed_cost"] for row in guessed]
    assert costs == sorted(costs)
    assert guessed[0]["guessed_cost"] == pytest.approx(min(row["guessed_cost"] for row in found["candidates"]))
    shown = capsys.readouterr().out
    sizes = " ".join(f"{name}={size}" for name, size in guessed[0]["target"].items())
    assert f"The first one: --target {sizes}" in shown
    assert "guessed cost" in shown


def test_a_model_may_be_of_its_config_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_config("llama3").save_pretrained(tmp_path / "large")
    make_config("llama3", intermediate_size=40, num_hidden_layers=3).save_pretrained(tmp_path / "small")
    found = choose(str(tmp_path / "large"), like=str(tmp_path / "small"), context=64)
    wanted = ModelShape.from_hf_config(AutoConfig.from_pretrained(tmp_path / "small")).num_parameters()
    assert found["budget"] == {"name": "parameters", "wanted": wanted}
    assert all(abs(row["num_parameters"] / wanted - 1) <= 0.02 for row in found["candidates"])
    main([str(tmp_path / "large"), "--speed", "1.3x", "--context", "64"])
    assert "the evenest cut comes first" in caplog.text
    half = choose(str(tmp_path / "large"), parameters=str(0.3 * found["source"]["num_parameters"]))
    assert any(warning.startswith("More than half of the model goes.") for warning in half["warnings"])
    assert len(half["stages"]) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_candidates_that_pruning_reaches(family: str, tmp_path: Path) -> None:
    make_config(family).save_pretrained(tmp_path)
    source = ModelShape.from_hf_config(AutoConfig.from_pretrained(tmp_path))
    found = choose(str(tmp_path), speed="1.3x", context=64)
    for row in found["candidates"]:
        assert resolve_target(source, row["target"]).num_parameters() == row["num_parameters"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--parameters", "1e30"], "is not less"),
        (["--parameters", "some"], "--parameters is 'some'; write it as 1.3e9 or 1.3B."),
        (["--speed", "2x", "--best", "0"], "--best is 0; it must be 1 or more."),
        (["--speed", "2x", "--scores", "nowhere"], "There is no file 'nowhere'."),
        (["--like", "nowhere"], "'nowhere' is neither"),
        (["--speed", "2x", "--data", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model("llama3").save_pretrained(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path), *options])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
