"""Agreement with the source and choices among continuations: known answers, and a real model on its own text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from llmshearing.errors import InputError
from llmshearing.text_quality import NUM_CHOICES, main, questions, read, text_quality
from tests.models import SIZES, make_model
from tests.repeats import LENGTH, learned, repeating, stories, write

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="module")
def repeats() -> PreTrainedModel:
    """Made once."""
    return learned()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, repeats: PreTrainedModel) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("quality")
    repeats.save_pretrained(folder / "repeats")
    make_model("llama3", seed=1).save_pretrained(folder / "random")
    write(folder / "data/eval/one", repeating(80, seed=100))
    write(folder / "data/eval/two", repeating(40, seed=101))
    return {name: folder / name for name in ("repeats", "random", "data")}


def test_a_model_agrees_with_itself_and_finds_what_it_has_learned(folders: dict[str, Path], tmp_path: Path) -> None:
    names = [str(folders[name]) for name in ("repeats", "random")]
    main([*names, "--source", names[0], "--data", str(folders["data"]), "--out", str(tmp_path / "found.json")])
    knows, random = (json.loads((tmp_path / "found.json").read_text())[name] for name in names)
    assert knows["agreement"] == {"one": 1.0, "two": 1.0, "mean": 1.0}
    assert knows["choices"]["mean"] > 0.95
    assert random["agreement"]["mean"] < 0.2
    assert random["num_parameters"] == knows["num_parameters"] > 0


def test_fewer_sequences_are_those_at_equal_distances(folders: dict[str, Path], tmp_path: Path) -> None:
    random, repeats = (str(folders[name]) for name in ("random", "repeats"))
    rows = repeating(40, seed=101)  # of the domain 'two'
    few = write(tmp_path / "few/eval/two", rows[[5, 15, 25, 35]]).parents[1]
    whole = write(tmp_path / "whole/eval/two", rows).parents[1]
    found = text_quality([random, repeats], repeats, few)
    assert text_quality([random, repeats], repeats, whole, num_sequences=4) == found
    assert text_quality([random, repeats], repeats, whole, num_sequences=100) != found


def test_random_weights_are_at_chance_on_text_that_means_nothing() -> None:
    torch.manual_seed(0)
    ids = torch.randint(3, SIZES["vocab_size"], (400, LENGTH))
    _, right = read(make_model("llama3"), ids, SIZES["vocab_size"])
    assert abs(right.float().mean().item() - 1 / NUM_CHOICES) < 0.08


@pytest.mark.parametrize("family", ["llama3", "mistral", "qwen2-window", "phi3", "gemma3"])
@pytest.mark.parametrize("length", [9, LENGTH])
def test_choices_behind_a_cached_passage_are_those_of_whole_sequences(family: str, length: int) -> None:
    model = make_model(family, initializer_range=0.5)
    ids = torch.randint(3, SIZES["vocab_size"], (24, length), generator=torch.Generator().manual_seed(length))
    likeliest, right = read(model, ids, SIZES["vocab_size"] - 2)
    with torch.inference_mode():
        assert torch.equal(likeliest, model(input_ids=ids).logits[:, :-1, :-2].argmax(-1))
        passages, continuations = questions(ids)
        for passage, choices, answered in zip(passages, continuations, right.tolist(), strict=True):
            whole = torch.cat([passage.expand(len(choices), -1), choices], dim=1)
            log_probs = model(input_ids=whole).logits[:, len(passage) - 1 : -1].log_softmax(-1)
            likelihoods = log_probs.gather(-1, choices.unsqueeze(-1)).sum((1, 2))
            assert bool(likelihoods[0] > likelihoods[1:].max()) is answered


@pytest.mark.parametrize(("number", "length"), [(4, 4), (5, 9), (16, 24), (33, 7)])
def test_questions_have_one_true_continuation_and_three_of_other_places(number: int, length: int) -> None:
    ids = torch.arange(number * length).view(number, length)
    passages, continuations = questions(ids)
    assert passages.shape == (number, length // 2)
    assert continuations.shape == (number, NUM_CHOICES, length // 4)
    assert torch.equal(continuations[:, 0, 0], passages[:, -1] + 1)
    rows = continuations[..., 0] // length
    assert all(len(set(row)) == NUM_CHOICES for row in rows.tolist())
    assert torch.equal(continuations[..., 0] % length, continuations[:, :1, 0] % length * torch.ones_like(rows))


def test_what_does_not_fit_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    source = str(folders["repeats"])
    with pytest.raises(InputError, match="Domain 'few' holds 3 sequences of 24 tokens .* --eval-sequences"):
        text_quality([source], source, write(tmp_path / "a/eval/few", repeating(3, seed=0)).parents[1])
    long = np.repeat(repeating(4, seed=0), 3, axis=1)
    with pytest.raises(InputError, match="72 tokens, but the model takes at most 64"):
        text_quality([source], source, write(tmp_path / "b/eval/long", long).parents[1])
    with pytest.raises(InputError, match="--sequences is 3; a question has the continuations of others as choices"):
        text_quality([source], source, folders["data"], num_sequences=3)
    with pytest.raises(InputError, match="Cannot load 'nowhere'"):
        text_quality(["nowhere"], source, folders["data"])


@pytest.mark.skipif(not (SHARED / "models/stories260K").is_dir(), reason="no ../shared/models/stories260K")
def test_a_real_source_beats_what_is_sheared_from_it(tmp_path: Path) -> None:
    model, cut, data = stories(SHARED, tmp_path)
    found = text_quality([model, cut], model, data)
    source, sheared = found[model], found[cut]
    assert source["choices"]["mean"] > 0.8
    assert source["choices"]["mean"] > sheared["choices"]["mean"] + 0.2
    assert source["agreement"]["mean"] == 1.0 > sheared["agreement"]["mean"] + 0.4
