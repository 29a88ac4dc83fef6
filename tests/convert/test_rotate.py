"""``convert rotate`` on a real model folder and prepared data."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from streaming import MDSWriter
from transformers import AutoConfig, AutoModelForCausalLM

from llmshearing.convert import rotate as rotation
from llmshearing.convert.__main__ import main
from llmshearing.convert.rotate import rotate
from llmshearing.errors import InputError
from tests.conftest import no_more_than
from tests.convert.tokenizers import make_tokenizer
from tests.models import SIZES, make_config, make_model, token_ids


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A train split of two domains, as prepare.py writes it."""
    for seed, domain in enumerate(("code", "web")):
        columns = {"tokens": "ndarray:uint16:16"}
        with MDSWriter(out=str(tmp_path / "data" / "train" / domain), columns=columns) as writer:
            for row in np.random.default_rng(seed).integers(0, SIZES["vocab_size"], (6, 16)):
                writer.write({"tokens": row.astype(np.uint16)})
    return tmp_path / "data"


def test_the_folder_holds_the_same_model(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model("llama3")
    model.save_pretrained(tmp_path / "model")
    command = ["convert", "rotate", str(tmp_path / "model"), str(tmp_path / "out"), "--data", str(data)]
    monkeypatch.setattr(sys, "argv", [*command, "--sequences", "7"])
    with caplog.at_level("INFO", "llmshearing"):
        main()
    assert "Loss on 7 sequences" in caplog.text
    turned = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        before, after = model(token_ids()).logits, turned(token_ids()).logits
    assert (after - before).abs().max() < 1e-4 * before.abs().max()
    assert turned.model.layers[0].input_layernorm.weight.unique().numel() == 1


def test_loss_before_and_after_is_reported(data: Path, tmp_path: Path) -> None:
    make_model("qwen2-tied").save_pretrained(tmp_path / "model")
    before, after = rotate(str(tmp_path / "model"), tmp_path / "out", data=data)
    assert before != pytest.approx(after, abs=1e-4)  # tied embeddings: not exact, and said
    make_model("qwen2").save_pretrained(tmp_path / "untied")
    before, after = rotate(str(tmp_path / "untied"), tmp_path / "out2", data=data)
    assert before == pytest.approx(after, abs=1e-4)


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong must be found before the weights are read."""

    def load(*arguments: object, **options: object) -> None:
        raise AssertionError("the weights were read first")

    monkeypatch.setattr(rotation, "load_pretrained", load)


@pytest.mark.usefixtures("no_loading")
def test_what_cannot_work_is_refused_before_the_weights_are_read(data: Path, tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    make_model("llama2").save_pretrained(model)
    out.mkdir()
    with pytest.raises(InputError, match="exists already"):
        rotate(str(model), out, data=data)
    (out / "photos").touch()
    with pytest.raises(InputError, match="is not a Hugging Face model"):
        rotate(str(model), out, data=data, overwrite=True)
    with pytest.raises(InputError, match="is or holds"):
        rotate(str(model), model, data=data, overwrite=True)
    make_config("llama2", max_position_embeddings=15).save_pretrained(model)
    with pytest.raises(InputError, match=r"holds sequences of 16 tokens, but the model takes 2 to 15. .*--seq-len 15"):
        rotate(str(model), tmp_path / "new", data=data)
    AutoConfig.for_model("gpt2").save_pretrained(model)
    with pytest.raises(InputError, match="Unknown model_type in '.*' 'gpt2'"):
        rotate(str(model), tmp_path / "new", data=data)
    with pytest.raises(InputError, match="Cannot write"):
        rotate(str(model), "/proc/out", data=data)
    assert [path.name for path in out.iterdir()] == ["photos"]
    assert not (tmp_path / "new").exists()


def test_weights_that_are_not_finite_or_not_there(data: Path, tmp_path: Path) -> None:
    model = make_model("llama2")
    with torch.no_grad():
        model.model.norm.weight[3] = torch.nan
    model.save_pretrained(tmp_path / "nan")
    with pytest.raises(InputError, match="'model.norm.weight' in '.*nan' holds NaN or infinity"):
        rotate(str(tmp_path / "nan"), tmp_path / "out", data=data)
    model = make_model("llama2")
    tensors = {name: tensor for name, tensor in model.state_dict().items() if "norm" not in name}
    model.save_pretrained(tmp_path / "lacking", state_dict=tensors)
    with pytest.raises(InputError, match="that it does not have: model.layers.0.input_layernorm.weight"):
        rotate(str(tmp_path / "lacking"), tmp_path / "out", data=data)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [60_000, 150_000])  # fails in the weights, in the tokenizer
def test_full_disk_leaves_nothing(data: Path, tmp_path: Path, size: int) -> None:
    make_model("llama2").save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    tokenizer = tmp_path / "model" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("{", "{" + " " * 200_000, 1))
    assert 60_000 < (tmp_path / "model" / "model.safetensors").stat().st_size < 600_000
    with no_more_than(size), pytest.raises(InputError, match="Cannot write '.*out': .*Nothing was left behind"):
        rotate(str(tmp_path / "model"), tmp_path / "out", data=data)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "model"]


def test_wrong_input_is_refused_and_leaves_nothing(data: Path, tmp_path: Path) -> None:
    make_model("llama2").save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="holds no prepared domain"):
        rotate(str(tmp_path / "model"), tmp_path / "out", data=tmp_path)
    with pytest.raises(InputError, match="nowhere' is neither"):
        rotate(str(tmp_path / "nowhere"), tmp_path / "out", data=data)
    with pytest.raises(InputError, match="at least 1"):
        rotate(str(tmp_path / "model"), tmp_path / "out", data=data, num_sequences=0)
    rotate(str(tmp_path / "model"), tmp_path / "all", data=data, num_sequences=10**30)  # as many as there are
    assert not (tmp_path / "out").exists()
