"""Loading a pretrained model: strictly, and with a count of what was loaded."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import is_flash_attn_2_available

from llmshearing import ComposerLlama
from llmshearing.errors import InputError
from tests.convert.checkpoints import Payload
from tests.models import make_config, make_model, token_ids

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


CONFIG = {"hidden_size": 48, "num_attention_heads": 8, "num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 9}
ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "either `pretrained`"),
    "both": ({"pretrained": "a/b", "config": {}}, "either `pretrained`"),
    "pretrained is a number": ({"pretrained": 5}, "model.pretrained is 5; it must be"),
    "pretrained is empty": ({"pretrained": ""}, "model.pretrained is ''; it must be"),
    "pretrained is a list": ({"pretrained": ["a"]}, r"model.pretrained is \['a'\]"),
    "pretrained is too long": ({"pretrained": "a" * 5000}, "is neither a folder nor a hub id"),
    "pretrained has a NUL": ({"pretrained": "a\0"}, "is neither a"),
    "pretrained is no hub id": ({"pretrained": "a b/c/d?"}, "is neither a Hugging Face model folder nor a hub id"),
    "config is a number": ({"config": 5}, "model.config is 5; it must be a mapping"),
    "config is a list": ({"config": [CONFIG]}, "it must be a mapping"),
    "config with a number as key": ({"config": {3: 4}}, "its keys must be names"),
    "unknown config key": ({"config": {"hidden_sise": 48}}, "Did you mean 'hidden_size'"),
    "a method as config key": ({"config": {"to_dict": 3}}, "Unknown model config key 'to_dict'"),
    "model_type is a list": ({"config": {"model_type": ["llama"]}}, "Unknown model_type in model.config"),
    "another model_type": ({"config": {"model_type": "llamma"}}, "Did you mean 'llama'"),
    "size is text": ({"config": {"hidden_size": "48"}}, "model.config.hidden_size is '48'; it must be of type int"),
    "size is true": ({"config": {"hidden_size": True}}, "model.config.hidden_size is True"),
    "size is zero": ({"config": {"num_attention_heads": 0}}, "model.config"),
    "size is negative": (
        {"config": {**CONFIG, "vocab_size": -1}},
        "model.config: vocab_size is -1; it must be a",
    ),
    "size is a fraction": ({"config": {"intermediate_size": 1.5}}, "model.config.intermediate_size is 1.5"),
    "heads do not divide": ({"config": {**CONFIG, "num_key_value_heads": 3}}, "not a multiple of num_key_value_heads"),
    "epsilon is text": ({"config": {"rms_norm_eps": "1e-5"}}, "model.config.rms_norm_eps is '1e-5'"),
    "unknown activation": ({"config": {**CONFIG, "hidden_act": "sillu"}}, "No model can be made of this config"),
    "rope without type": ({"config": {**CONFIG, "rope_scaling": {"factor": "x"}}}, "model"),
    "too large": ({"config": {**CONFIG, "vocab_size": 10**15}}, "No model can be made of this config"),
    "expected_config is a number": ({"config": CONFIG, "expected_config": 5}, "model.expected_config is 5"),
    "expected_config with a number as key": ({"config": CONFIG, "expected_config": {5: 5}}, "keys must be names"),
    "expected_config of another type": (
        {"config": CONFIG, "expected_config": {"hidden_size": "48"}},
        "hidden_size is 48, not '48'",
    ),
    "tokenizer is text": ({"config": CONFIG, "tokenizer": "gpt2"}, "model.tokenizer is 'gpt2'"),
    "unknown attention": ({"config": CONFIG, "attn_implementation": "spda"}, "Did you mean 'sdpa'"),
    "attention is a number": ({"config": CONFIG, "attn_implementation": 5}, "Unknown attn_implementation '5'"),
    "attention is a list": ({"config": CONFIG, "attn_implementation": []}, "Unknown attn_implementation"),
    "init_device": ({"config": CONFIG, "init_device": "mixd"}, "Unknown init_device 'mixd'. Did you mean 'mixed'"),
    "init_device is a mapping": ({"config": CONFIG, "init_device": {}}, "Unknown init_device"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_wrong_arguments_are_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.utils.hub, "_is_offline_mode", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    arguments, message = ARGUMENTS[name]
    with pytest.raises(InputError, match=message) as refused:
        ComposerLlama(**arguments)
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(is_flash_attn_2_available(), reason="flash-attn is installed here, and the model can be made")
def test_flash_attention_without_its_package_is_one_line() -> None:
    with pytest.raises(InputError, match="which needs a GPU and the package flash-attn. Install it, or choose sdpa"):
        ComposerLlama(config=CONFIG, attn_implementation="flash_attention_2")


def test_folders_that_are_no_model(tmp_path: Path) -> None:
    model = make_model("llama3")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    config = json.loads((tmp_path / "config.json").read_text())
    for content, message in (
        ("[1]", "is not a mapping"),
        ("", "is not valid JSON"),
        ("{}", "Unknown model_type in '.*' 'None'"),
        ('{"model_type": "gpt2"}', "Unknown model_type in '.*' 'gpt2'"),
        ('{"model_type": 5}', "Unknown model_type"),
        (json.dumps({**config, "hidden_size": "48"}), "hidden_size"),
        (json.dumps({**config, "hidden_size": None}), "hidden_size"),
        (json.dumps({**config, "num_attention_heads": 0}), "num_attention_heads is 0|cannot be used"),
        (json.dumps({**config, "max_position_embeddings": "64"}), "max_position_embeddings is '64'"),
        (json.dumps({**config, "rope_scaling": 5}), "cannot be used"),
    ):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(InputError, match=message) as refused:
            load(tmp_path)
        assert "\n" not in str(refused.value)
    (tmp_path / "config.json").write_text(json.dumps(config))
    index = tmp_path / "model.safetensors.index.json"
    whole = index.read_text()
    for content in ("", "[1]", "{}", '{"weight_map": {"a": "b"}}', '{"weight_map": 5}'):
        index.write_text(content)
        with pytest.raises(InputError, match="cannot be loaded") as refused:
            load(tmp_path)
        assert "\n" not in str(refused.value)
    index.write_text(whole)
    next(tmp_path.glob("model-00002*")).write_bytes(b"")
    with pytest.raises(InputError, match="cannot be loaded"):
        load(tmp_path)


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    for value, dtype in ((torch.nan, torch.float32), (torch.inf, torch.bfloat16), (-torch.inf, torch.float16)):
        model = make_model("qwen2-tied").to(dtype)
        with torch.no_grad():
            model.model.layers[2].mlp.up_proj.weight[3, 4] = value
        model.save_pretrained(tmp_path)
        with pytest.raises(InputError, match=r"'model.layers.2.mlp.up_proj.weight' in '.*' holds NaN or infinity"):
            load(tmp_path)


def test_attention_that_leaves_a_cap_out_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What transformers computes by sdpa for a Gemma 2 is another function than what servers compute."""
    make_model("gemma2-tied", attn_logit_softcapping=1.0).save_pretrained(tmp_path)
    logits = {}
    for attention, warned in (("eager", False), ("sdpa", True)):
        caplog.clear()
        model = ComposerLlama(pretrained=str(tmp_path), attn_implementation=attention).model.eval()
        assert ("attn_logit_softcapping is 1.0, but attention by 'sdpa' leaves it out" in caplog.text) is warned
        with torch.no_grad():
            logits[attention] = model(token_ids()).logits
    assert not torch.allclose(logits["eager"], logits["sdpa"], atol=0.1)
    make_model("gemma3-tied").save_pretrained(tmp_path)  # which has none
    caplog.clear()
    load(tmp_path)
    assert "softcapping" not in caplog.text


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
