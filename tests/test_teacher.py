"""Teacher: what it predicts, whose tokens it shares, and which rank reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from llmshearing.errors import InputError
from llmshearing.teacher import Teacher, common_vocabulary, load_teacher
from tests.conftest import REPOSITORY
from tests.forkserver import ForkServer
from tests.models import FAMILIES, SIZES, make_model, token_ids


def assert_predicts_as(model: Any) -> None:
    """A teacher of the model gives its likeliest tokens, and all in order if asked for all."""
    ids = token_ids()
    with torch.no_grad():
        expected = (model(ids).logits.float() / 1.5).log_softmax(-1)
        values, tokens = Teacher(model, top_k=5, temperature=1.5)(input_ids=ids)
        whole, none = Teacher(model, top_k=None, temperature=1.5)(input_ids=ids)
    torch.testing.assert_close(whole, expected)
    assert none is None
    likeliest = expected.sort(descending=True)
    order = values.argsort(descending=True)
    torch.testing.assert_close(values.gather(-1, order), likeliest.values[..., :5])
    assert torch.equal(tokens.gather(-1, order), likeliest.indices[..., :5])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_teacher_predicts_what_its_model_does(family: str) -> None:
    assert_predicts_as(make_model(family))


@pytest.mark.parametrize(
    ("model_type", "own"),
    [
        ("cohere", {"logit_scale": 0.25}),
        ("mixtral", {"num_local_experts": 2}),
        ("gpt2", {"n_layer": 2, "n_embd": 48, "n_head": 4, "n_positions": 64}),
    ],
)
def test_a_teacher_of_a_family_that_cannot_be_pruned_predicts_what_it_does_by_itself(
    model_type: str, own: dict[str, Any]
) -> None:
    sizes = {**SIZES, "pad_token_id": 0, "attn_implementation": "eager"}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**sizes, **own})).eval()
    assert_predicts_as(model)


def words(*names: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token=names[0]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_tokenizers_that_differ_are_refused_and_added_tokens_are_no_difference() -> None:
    same, other, added = words("a", "b", "c"), words("a", "c", "b"), words("a", "b", "c")
    added.add_special_tokens({"pad_token": "<pad>"})
    assert common_vocabulary("big", 8, 6, same, same) == common_vocabulary("big", 6, 8, same, added) == 6
    with pytest.raises(InputError, match="'big' has another tokenizer than the model: 4 entries"):
        common_vocabulary("big", 8, 8, same, other)
    with pytest.raises(InputError, match="has 3 tokens and the model 8, but the tokenizer gives ids up to 3"):
        common_vocabulary("big", 3, 8, same, added)
    assert common_vocabulary("big", 8, 8, None, same) == 8
    with pytest.raises(InputError, match="has 8 tokens, the model 6: they need the same tokenizer"):
        common_vocabulary("big", 8, 6, None, same)


@pytest.mark.parametrize("family", ["llama3", "gemma3-tied"])
def test_what_a_read_teacher_predicts_is_what_transformers_reads(tmp_path: Path, family: str) -> None:
    make_model(family).save_pretrained(tmp_path)
    assert_predicts_as(load_teacher(str(tmp_path), torch.float32))


@pytest.mark.dist
@pytest.mark.slow
def test_one_rank_reads_the_teacher_and_hands_it_on(forked: ForkServer, tmp_path: Path) -> None:
    """Also what no file holds: rotary frequencies (two kinds in Gemma 3), and the scale of its embedding."""
    for family in ("llama3", "gemma3", "gemma3-tied", "granite-tied"):
        make_model(family).save_pretrained(tmp_path / family)
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "vocab_size": 2000}
    make_model("gemma3", **sizes).save_pretrained(tmp_path / "large")
    (tmp_path / "broken").mkdir()
    command = ["composer", "-n", "2", "-m", "tests.teacher_run", str(tmp_path)]
    done = forked.run(command, cwd=REPOSITORY, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    size = ranks[0]["megabytes"]
    assert size > 80
    assert ranks[0]["peak"] > 1.4 * size  # the whole and its own half
    assert ranks[1]["peak"] < 0.9 * size  # its half, and one tensor at a time
    for rank in ranks:
        assert max(rank["difference"].values()) < 1e-6, rank["difference"]
        assert "broken' cannot be loaded" in rank["refused"]
