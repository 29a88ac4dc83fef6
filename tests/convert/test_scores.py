"""A model's folder and a file of scores to models of several shapes, through the commands."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from llmshearing import score
from llmshearing.architecture.shapes import ModelShape
from llmshearing.convert import __main__
from llmshearing.convert.commands import export, shear
from llmshearing.errors import InputError
from llmshearing.pruning.scores import Scores
from llmshearing.pruning.shear import shear_state_dict
from tests.convert.checkpoints import dense
from tests.convert.test_fit import LENGTH, write
from tests.convert.tokenizers import make_tokenizer
from tests.models import SIZES, make_model

TARGETS = [
    {"num_hidden_layers": 2, "hidden_size": 40, "intermediate_size": 48},
    {"num_hidden_layers": 3, "num_key_value_heads": 1},
]


@pytest.fixture(scope="module", params=["llama3", "qwen2-tied"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model``, ``data`` and the model's ``scores.safetensors``."""
    folder = tmp_path_factory.mktemp(request.param)
    model = make_model(request.param)
    model.save_pretrained(folder / "model")
    torch.manual_seed(0)
    settings = {"max_new_tokens": LENGTH - 1, "min_new_tokens": LENGTH - 1, "do_sample": True, "pad_token_id": 0}
    rows = model.generate(torch.arange(64).unsqueeze(-1) + 8, **settings)
    write(folder / "data", rows.numpy())
    score.main([*map(str, (folder / "model", folder / "scores.safetensors")), "--data", str(folder / "data")])
    return folder


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
    __main__.main()


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: "-".join(target))
def test_one_file_of_scores_serves_any_target(
    made: Path, target: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [f"{name}={size}" for name, size in target.items()]
    command(monkeypatch, "shear", made / "model", tmp_path / "out", "--scores", made / "scores.safetensors",
            "--target", *sizes)  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(made / "model")
    shape, masks = Scores.load(made / "scores.safetensors").masks(target)
    wanted = shear_state_dict(dict(model.named_parameters()), masks, ModelShape.from_hf_config(model.config), shape)
    found = load_file(tmp_path / "out/model.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert ModelShape.from_hf_config(small.config) == shape
    record = json.loads((tmp_path / "out/shearing.json").read_text())
    assert (record["target"], record["proportions"]) == (shape.to_dict(), None)


def test_what_is_left_is_fitted_too(made: Path, tmp_path: Path) -> None:
    shear(
        made / "model",
        tmp_path / "out",
        scores=made / "scores.safetensors",
        target={"num_hidden_layers": 3, "hidden_size": 40},
        fit=made / "data",
        fit_sequences=40,
    )
    losses = json.loads((tmp_path / "out/shearing.json").read_text())["fit"]["losses"]
    assert losses["source"] < losses["after"] < losses["before"]


def test_shards_and_a_tokenizer_come_along(made: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(made / "model")
    model.save_pretrained(tmp_path / "model", max_shard_size="40KB")
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path / "model")
    assert len(list((tmp_path / "model").glob("model-*"))) > 2
    shear(tmp_path / "model", tmp_path / "out", scores=made / "scores.safetensors", target=TARGETS[0])
    shear(made / "model", tmp_path / "whole", scores=made / "scores.safetensors", target=TARGETS[0])
    files = [folder / "model.safetensors" for folder in (tmp_path / "out", tmp_path / "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()
    text = "once upon a time"
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(text)["input_ids"] == tokenizer(text)["input_ids"]
    export(tmp_path / "model", tmp_path / "narrow", dtype=torch.bfloat16)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "narrow", torch_dtype="auto").dtype == torch.bfloat16


def test_a_whole_file_counts_and_not_the_index_that_an_earlier_save_left(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    make_model("llama3", seed=1).save_pretrained(folder, max_shard_size="40KB")
    AutoModelForCausalLM.from_pretrained(made / "model").save_pretrained(tmp_path / "new")
    (folder / "model.safetensors").write_bytes((tmp_path / "new/model.safetensors").read_bytes())
    (folder / "config.json").write_bytes((tmp_path / "new/config.json").read_bytes())
    export(folder, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(folder).model.norm.weight
    assert torch.equal(load_file(tmp_path / "out/model.safetensors")["model.norm.weight"], loaded)


@pytest.mark.parametrize(
    ("family", "changes", "lacks"),
    [
        ("smollm3-tied", {"no_rope_layers": None, "no_rope_layer_interval": 2}, "no_rope_layers"),
        ("gemma2-tied", {}, "layer_types"),
        ("gemma3-tied", {}, "layer_types"),
    ],
)
def test_kinds_that_layers_have_by_their_index_go_with_them(
    family: str, changes: dict[str, Any], lacks: str, made: Path, tmp_path: Path
) -> None:
    """As they are in hub folders of before transformers 4.53."""
    model = make_model(family, **changes)
    model.save_pretrained(tmp_path / "model")
    place = tmp_path / "model/config.json"
    config = json.loads(place.read_text())
    del config[lacks]
    place.write_text(json.dumps({**config, "sliding_window_pattern": 2}))
    score.score_model(str(tmp_path / "model"), tmp_path / "scores", data=made / "data", num_sequences=8)
    found = Scores.load(tmp_path / "scores")
    worth = torch.tensor([1.0, 0.0, 1.0, 0.0])  # which leaves both of one kind
    dataclasses.replace(found, units={**found.units, "num_hidden_layers": worth}).save(tmp_path / "scores")
    shear(tmp_path / "model", tmp_path / "out", scores=tmp_path / "scores", target={"num_hidden_layers": 2})
    kinds = getattr(model.config, lacks)
    assert getattr(AutoConfig.from_pretrained(tmp_path / "out"), lacks) == [kinds[0], kinds[2]]


def test_a_dense_checkpoint_is_sheared_by_the_scores_of_its_export(made: Path, tmp_path: Path) -> None:
    checkpoint = dense(tmp_path / "run")
    export(checkpoint, tmp_path / "model")
    score.score_model(str(tmp_path / "model"), tmp_path / "scores", data=made / "data", num_sequences=8)
    for path, out in ((checkpoint, "first"), (tmp_path / "model", "second")):
        shear(path, tmp_path / out, scores=tmp_path / "scores", target=TARGETS[0])
    first, second = (tmp_path / out / "model.safetensors" for out in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


def test_what_does_not_go_together_is_refused(made: Path, checkpoint: Path, tmp_path: Path) -> None:
    model, scores, out = made / "model", made / "scores.safetensors", tmp_path / "out"
    with pytest.raises(InputError, match=r"holds no masks.* give --scores and --target"):
        shear(model, out)
    with pytest.raises(InputError, match="give both --scores and --target"):
        shear(model, out, scores=scores)
    with pytest.raises(InputError, match=r"target.hidden_size is 4000, but the source model has 48"):
        shear(model, out, scores=scores, target={"hidden_size": 4000})
    with pytest.raises(InputError, match="The target equals the source model"):
        shear(model, out, scores=scores, target={"hidden_size": SIZES["hidden_size"]})
    other = make_model("llama3", seed=5)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="of another model|The scores are of a model of"):
        shear(tmp_path / "other", out, scores=scores, target=TARGETS[0])
    with pytest.raises(InputError, match="has masks of its own"):
        shear(checkpoint, out, scores=scores, target=TARGETS[0])
    assert not out.exists()


@pytest.mark.parametrize("sizes", [["hidden_size"], ["hidden_size=big"], ["hidden_size=32", "hidden_size=40"]])
def test_a_size_that_cannot_be_read_is_refused(
    made: Path, sizes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        command(monkeypatch, "shear", made / "model", tmp_path / "out", "--scores", made / "scores.safetensors",
                "--target", *sizes)  # fmt: skip
    assert stopped.value.code == 2
    assert f"--target has '{sizes[-1]}'" in capsys.readouterr().err


def test_a_damaged_folder_is_refused(made: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(made / "model")
    scores, broken = made / "scores.safetensors", tmp_path / "model"

    def refused(message: str) -> None:
        with pytest.raises(InputError, match=message):
            shear(broken, tmp_path / "out", scores=scores, target=TARGETS[0])
        assert not (tmp_path / "out").exists()

    model.save_pretrained(broken)
    weights = broken / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    refused("the file is truncated")
    weights.write_bytes(b"\x10" + b"\x00" * 7 + b"not a header at all")
    refused("header that is damaged")
    weights.write_bytes(b"\xff" * 64)
    refused("not a safetensors file, or it is truncated")
    weights.unlink()
    refused("holds no safetensors")
    weights.write_bytes(whole)
    (broken / "config.json").write_text("[]")
    refused("not the config of a model")
