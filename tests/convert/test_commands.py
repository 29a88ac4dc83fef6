"""What conversion writes is exactly the model, however it was stored and however it is cut up."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from llmshearing import ModelShape
from llmshearing.architecture.shapes import parameter_shapes
from llmshearing.convert import commands
from llmshearing.convert.__main__ import main
from llmshearing.convert.commands import export, shear
from llmshearing.data.loaders import build_dynamic_streaming_dataloader
from llmshearing.pruning.hard_concrete import deterministic
from llmshearing.pruning.shear import shear_state_dict
from tests.convert.checkpoints import changed, pruned, pruning_of, sharded
from tests.data.helpers import numbers, open_dataset, write_domain
from tests.data.helpers import train as take
from tests.models import FAMILIES, make_model, token_ids


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name, tensor in wanted.items() if not torch.equal(found[name], tensor)] == []


def sheared_in_memory(checkpoint: Path) -> dict[str, Tensor]:
    """What a pruning checkpoint must become, from all its tensors at once."""
    content = torch.load(checkpoint, weights_only=False)
    pruning = pruning_of(content)
    source, target = ModelShape.from_dict(pruning["source"]), ModelShape.from_dict(pruning["target"])
    kept = {**target.to_dict(), "num_attention_heads": target.queries_per_group}
    masks = {name: deterministic(value, kept[name]) for name, value in pruning["masks"]["log_alpha"].items()}
    model = {name.removeprefix("model."): tensor for name, tensor in content["state"]["model"].items()}
    if source.tie_word_embeddings:
        model.pop("lm_head.weight", None)
    return shear_state_dict(model, masks, source, target)


@pytest.mark.parametrize("family", FAMILIES)
def test_parameter_shapes_are_those_of_the_model(family: str) -> None:
    model = make_model(family)
    shape = ModelShape.from_hf_config(model.config)
    assert parameter_shapes(shape) == {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_shears_and_exports_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    monkeypatch.setattr(commands, "_BYTES_IN_FLIGHT", 1000)  # tiny tensors in many pieces too
    checkpoint = pruned(tmp_path / "run", family=family)
    wanted = sheared_in_memory(checkpoint)
    shear(checkpoint, tmp_path / "out")
    assert_equal(tensors_of(tmp_path / "out"), wanted)
    shear(checkpoint, tmp_path / "half", dtype=torch.bfloat16)
    assert_equal(tensors_of(tmp_path / "half"), {name: tensor.bfloat16() for name, tensor in wanted.items()})

    def drop_masks(content: dict) -> None:
        content["state"]["algorithms"] = []

    export(changed(checkpoint, tmp_path / "dense.pt", drop_masks), tmp_path / "dense")
    saved = torch.load(checkpoint, weights_only=False)["state"]["model"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert_equal(model.state_dict(), {name.removeprefix("model."): tensor for name, tensor in saved.items()})


def test_bfloat16_checkpoint_keeps_its_dtype_and_widens_exactly(tmp_path: Path) -> None:
    def halve(content: dict) -> None:
        model = content["state"]["model"]
        model.update({name: tensor.bfloat16() for name, tensor in model.items()})

    checkpoint = changed(pruned(tmp_path / "run"), tmp_path / "half.pt", halve)
    shear(checkpoint, tmp_path / "kept")
    assert_equal(tensors_of(tmp_path / "kept"), sheared_in_memory(checkpoint))
    assert json.loads((tmp_path / "kept/config.json").read_text())["torch_dtype"] == "bfloat16"
    shear(checkpoint, tmp_path / "wide", dtype=torch.float32)
    wide = {name: tensor.bfloat16() for name, tensor in tensors_of(tmp_path / "wide").items()}
    assert_equal(wide, tensors_of(tmp_path / "kept"))


def test_shards_and_storage_do_not_matter(tmp_path: Path) -> None:
    checkpoint = pruned(tmp_path / "run")
    shear(checkpoint, tmp_path / "one")
    shear(sharded(checkpoint, tmp_path / "sharded"), tmp_path / "from-sharded")
    assert {file.name: file.read_bytes() for file in (tmp_path / "one").iterdir()} == {
        file.name: file.read_bytes() for file in (tmp_path / "from-sharded").iterdir()
    }
    shear(checkpoint, tmp_path / "many", max_shard_bytes=10_000)
    assert len(list((tmp_path / "many").glob("model-*-of-*.safetensors"))) > 3
    assert_equal(tensors_of(tmp_path / "many"), tensors_of(tmp_path / "one"))
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("one", "many")]
    assert torch.equal(*(model(token_ids()).logits for model in models))


def test_command_line_replaces_a_folder_and_cuts_shards_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, out = pruned(tmp_path / "run"), tmp_path / "out"
    out.mkdir()
    (out / "model.safetensors").write_text("old")
    (out / "config.json").write_text("{}")
    options = ["--overwrite", "--dtype", "bfloat16", "--max-shard-size", "20KB"]
    monkeypatch.setattr(sys, "argv", ["convert", "shear", str(checkpoint), str(out), *options])
    main()
    assert not (out / "model.safetensors").exists()
    shards = list(out.glob("model-*-of-*.safetensors"))
    assert len(shards) > 1
    assert max(shard.stat().st_size for shard in shards) < 25_000  # with its header
    wanted = sheared_in_memory(checkpoint)
    assert_equal(tensors_of(out), {name: tensor.bfloat16() for name, tensor in wanted.items()})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_continued_training_uses_no_sample_that_pruning_used(tmp_path: Path) -> None:
    samples = {"code": 60, "web": 50, "books": 40}
    for domain, (name, count) in enumerate(samples.items()):
        write_domain(tmp_path / "data" / name, domain, count)
    pruning_data = open_dataset(tmp_path / "data")
    used = take(pruning_data, 6, after=[[0.2, 0.5, 0.3]])  # ends within the second round
    state = pruning_data.state_dict(24)

    def add_data(content: dict) -> None:
        content["state"]["dataset_state"] = {"train": state, "eval": {}}

    shear(changed(pruned(tmp_path / "run"), tmp_path / "with-data.pt", add_data), tmp_path / "out")
    record = json.loads((tmp_path / "out" / "shearing.json").read_text())
    assert record["proportions"] == pytest.approx({"code": 0.2, "web": 0.5, "books": 0.3})
    assert record["samples_used"] == {
        name: sum(domain == index for batch in used for domain, _ in batch) for index, name in enumerate(samples)
    }

    assert record["order"]["shuffle_seed"] == 9176
    assert list(record["order"]["shards"]) == list(samples)

    path = str(tmp_path / "out" / "shearing.json")
    settings = {"local": str(tmp_path / "data"), "proportions": path, "start": path, "update_interval": 1}
    settings |= {"on_exhausted": "stop", "shuffle_block_size": 40}
    loader = build_dynamic_streaming_dataloader(None, 4, settings, num_workers=0).dataloader
    loader.dataset.rounds.hold()
    seen = [row for batch in used for row in batch]
    seen += [row for batch in loader for row in numbers(batch)]
    assert len(seen) > 100
    assert len(set(seen)) == len(seen)
