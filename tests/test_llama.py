"""Loading a pretrained model: strictly, and with a count of what was loaded."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmshearing import ComposerLlama
from llmshearing.errors import InputError
from tests.convert.checkpoints import Payload
from tests.models import make_config, make_model

NORM = "model.norm.weight"


def load(folder: Path) -> dict[str, Tensor]:
    return ComposerLlama(pretrained=str(folder)).model.state_dict()


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize("family", ["llama3", "qwen2-tied"])
def test_sharded_weights_load_exactly_and_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, family: str, safe: bool
) -> None:
    model = make_model(family)
    model.save_pretrained(tmp_path, safe_serialization=safe, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors" if safe else "*.bin"))) > 2
    with caplog.at_level(logging.INFO, "llmshearing"):
        loaded = load(tmp_path)
    total = len(list(model.parameters()))
    assert f"Loaded {total} of {total} tensors" in caplog.text
    assert [name for name, tensor in model.state_dict().items() if not torch.equal(loaded[name], tensor)] == []


def test_bfloat16_weights_train_in_float32_without_a_cache(tmp_path: Path) -> None:
    make_model("llama3").bfloat16().save_pretrained(tmp_path)
    model = ComposerLlama(pretrained=str(tmp_path)).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.config.use_cache


def test_weights_that_do_not_fit_the_config(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"

    def save(**changes: Tensor | None) -> None:
        make_model("llama3").save_pretrained(tmp_path)
        tensors = {**load_file(file), **changes}
        save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file, {"format": "pt"})

    save(**{NORM: None})
    with pytest.raises(InputError, match=r"Loaded 38 of 39 tensors .* 1 that it does not have: model.norm.weight"):
        load(tmp_path)
    save(**{NORM: torch.ones(47)})
    with pytest.raises(InputError, match="Loaded 38 of 39 .* another shape than its config says: model.norm.weight"):
        load(tmp_path)
    save(foreign=torch.ones(1))
    with pytest.raises(InputError, match="1 that it has besides those of its config: foreign"):
        load(tmp_path)
    save()
    make_config("llama3", num_hidden_layers=5).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"Loaded 39 of 48 tensors .* 9 that it does not have: model.layers.4."):
        load(tmp_path)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot be loaded: .*incomplete metadata"):
        load(tmp_path)


def test_code_in_a_bin_file_is_refused_and_does_not_run(tmp_path: Path) -> None:
    model = make_model("llama3")
    model.config.save_pretrained(tmp_path)
    torch.save({**model.state_dict(), "evil": Payload(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="holds objects that could run code"):
        load(tmp_path)
    assert not (tmp_path / "ran").exists()
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(InputError, match="cannot be loaded: .*no file named"):
        load(tmp_path)


def test_init_device_is_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Unknown init_device 'mixd'. Did you mean 'mixed'"):
        ComposerLlama(config=make_config("llama3").to_diff_dict(), init_device="mixd")


def test_hub_id_in_the_local_cache_loads_and_another_is_named(tmp_path: Path) -> None:
    model = make_model("llama3")
    cached = tmp_path / "hub" / "models--org--name"
    model.save_pretrained(cached / "snapshots" / "0123")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123")
    script = (
        "import sys, torch; from llmshearing import ComposerLlama; from llmshearing.errors import InputError\n"
        "torch.save(ComposerLlama(pretrained='org/name').model.state_dict(), sys.argv[1])\n"
        "try:\n    ComposerLlama(pretrained='org/other')\n"
        "except InputError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "loaded.pt")],
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "'org/other' is neither a Hugging Face model folder nor a hub id that can be reached" in done.stdout
    loaded = torch.load(tmp_path / "loaded.pt", weights_only=True)
    assert [name for name, tensor in model.state_dict().items() if not torch.equal(loaded[name], tensor)] == []
