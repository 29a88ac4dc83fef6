"""``convert rotate`` on a real model folder and prepared data."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from streaming import MDSWriter
from transformers import AutoModelForCausalLM

from llmshearing.convert.rotate import rotate
from llmshearing.errors import InputError
from tests.forkserver import ForkServer
from tests.models import SIZES, make_model, token_ids


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A train split of two domains, as prepare.py writes it."""
    for seed, domain in enumerate(("code", "web")):
        columns = {"tokens": "ndarray:uint16:16"}
        with MDSWriter(out=str(tmp_path / "data" / "train" / domain), columns=columns) as writer:
            for row in np.random.default_rng(seed).integers(0, SIZES["vocab_size"], (6, 16)):
                writer.write({"tokens": row.astype(np.uint16)})
    return tmp_path / "data"


def test_the_folder_holds_the_same_model(forked: ForkServer, data: Path, tmp_path: Path) -> None:
    model = make_model("llama3")
    model.save_pretrained(tmp_path / "model")
    command = [sys.executable, "-m", "llmshearing.convert", "rotate", str(tmp_path / "model"), str(tmp_path / "out")]
    done = forked.run([*command, "--data", str(data), "--sequences", "7"])
    assert done.returncode == 0, done.stderr
    assert "Loss on 7 sequences" in done.stderr
    turned = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        before, after = model(token_ids()).logits, turned(token_ids()).logits
    assert (after - before).abs().max() < 1e-4 * before.abs().max()
    assert (turned.model.layers[0].input_layernorm.weight == 1).all()


def test_loss_before_and_after_is_reported(data: Path, tmp_path: Path) -> None:
    make_model("qwen2-tied").save_pretrained(tmp_path / "model")
    before, after = rotate(str(tmp_path / "model"), tmp_path / "out", data=data)
    assert before != pytest.approx(after, abs=1e-4)  # tied embeddings: not exact, and said
    make_model("qwen2").save_pretrained(tmp_path / "untied")
    before, after = rotate(str(tmp_path / "untied"), tmp_path / "out2", data=data)
    assert before == pytest.approx(after, abs=1e-4)


def test_wrong_input_is_refused_and_leaves_nothing(data: Path, tmp_path: Path) -> None:
    make_model("llama2").save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="holds no prepared domain"):
        rotate(str(tmp_path / "model"), tmp_path / "out", data=tmp_path)
    with pytest.raises(InputError, match="Cannot load"):
        rotate(str(tmp_path / "nowhere"), tmp_path / "out", data=data)
    with pytest.raises(InputError, match="at least 1"):
        rotate(str(tmp_path / "model"), tmp_path / "out", data=data, num_sequences=0)
    assert not (tmp_path / "out").exists()
