"""Checkpoints and places that cannot work: one line that says why, exit code 2, and nothing left behind."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import Metadata

from tests.convert.checkpoints import Change, Content, Payload, changed, dense, pruning_of, sharded

NORM = "model.model.norm.weight"


def model_of(content: Content) -> Content:
    return content["state"]["model"]


def rename(content: Content) -> None:
    model_of(content)["model.model.other.weight"] = model_of(content).pop(NORM)


def set_in_model(name: str, value: Any) -> Change:
    return lambda content: model_of(content).update({name: value})


def poison(content: Content) -> None:
    model_of(content)["model.lm_head.weight"][3, 5] = torch.nan


def overflow(content: Content) -> None:
    model_of(content)["model.lm_head.weight"][3, 5] = 1e6


def log_alpha_of(content: Content) -> Content:
    return pruning_of(content)["masks"]["log_alpha"]


def config_of(content: Content) -> Content:
    return config_file(content)["content"]


def config_file(content: Content) -> Content:
    return content["state"]["integrations"]["huggingface"]["model"]["config"]


JSON = {"file_extension": ".json", "content": {}}


def add_tokenizer(files: Content) -> Change:
    return lambda content: content["state"]["integrations"]["huggingface"].update(tokenizer=files)


CHANGED: dict[str, tuple[Change, str]] = {
    "no state": (lambda content: content.pop("state"), "not a Composer checkpoint: it has no state"),
    "model of numbers": (set_in_model(NORM, 3), "not a Composer checkpoint: it has no state with a model"),
    "missing tensor": (lambda content: model_of(content).pop(NORM), "lacks model.norm.weight (4 layers"),
    "renamed tensor": (rename, "lacks model.norm.weight"),
    "extra tensor": (
        set_in_model("model.lora_A", torch.zeros(2)),
        "holds tensors that the model has no place for: lora_A",
    ),
    "other shape": (set_in_model(NORM, torch.ones(47)), "holds other shapes than the config says for model.norm"),
    "integer weights": (set_in_model(NORM, torch.ones(48, dtype=torch.int64)), "weights must be floating point"),
    "NaN": (poison, "'lm_head.weight' in "),
    "no masks": (lambda content: content["state"].update(algorithms=[]), "holds no masks"),
    "masks of one dimension missing": (
        lambda content: log_alpha_of(content).pop("hidden_size"),
        "There are no masks for hidden_size, which goes from 48 to 24",
    ),
    "masks of another size": (
        lambda content: log_alpha_of(content).update(hidden_size=torch.zeros(50)),
        "The masks of hidden_size have shape (50,), not (48,)",
    ),
    "masks not finite": (
        lambda content: log_alpha_of(content)["hidden_size"].fill_(torch.nan),
        "The masks of hidden_size hold values that are not finite",
    ),
    "masks of another form": (lambda content: pruning_of(content).pop("source"), "form that this version does not"),
    "masks of another model": (
        lambda content: config_of(content).update(intermediate_size=96),
        "its config is of another shape",
    ),
    "no config": (lambda content: content["state"].pop("integrations"), "holds no Hugging Face config"),
    "config without a size": (lambda content: config_of(content).pop("hidden_size"), "has no hidden_size"),
    "another family": (
        lambda content: config_of(content).update(model_type="gpt2"),
        "Models of type 'gpt2' are not supported",
    ),
    "tokenizer that leaves the folder": (add_tokenizer({"../../evil": JSON}), "outside its folder"),
    "tokenizer that replaces the config": (add_tokenizer({"config": JSON}), "has a file 'config.json', a name of"),
    "tokenizer that replaces weights": (add_tokenizer({"Model.safetensors.index": JSON}), "a name of the model's own"),
    "tokenizer of code": (add_tokenizer({"tok": {**JSON, "file_extension": ".py"}}), "of a kind that is not written"),
    "tokenizer of another form": (add_tokenizer({"vocab": 3}), "of another form"),
    "tokenizer of numbers": (add_tokenizer({"a": {"file_extension": ".txt", "content": [1]}}), "is not written"),
    "tokenizer of NaN": (add_tokenizer({"a": {**JSON, "content": torch.nan}}), "that JSON cannot express"),
    "config of no mapping": (lambda content: config_file(content).update(content=[1, 2]), "its state has another form"),
    "size that is text": (lambda content: config_of(content).update(hidden_size="48"), "hidden_size is '48'"),
    "size of zero": (lambda content: config_of(content).update(num_attention_heads=0), "num_attention_heads is 0"),
    "heads that do not divide": (lambda content: config_of(content).update(num_key_value_heads=3), "not a multiple of"),
    "type that is no name": (lambda content: config_of(content).update(model_type=["llama"]), "are not supported"),
    "config of tensors": (lambda content: config_of(content).update(x=torch.ones(2)), "that JSON cannot express"),
    "target that cannot be": (
        lambda content: pruning_of(content)["target"].update(hidden_size=10**9),
        "target.hidden_size is 1000000000",
    ),
    "masks of text": (
        lambda content: log_alpha_of(content).update(hidden_size="no"),
        "that this version does not know",
    ),
    "algorithms of numbers": (lambda content: content["state"].update(algorithms=[1]), "its state has another form"),
    "data of another form": (
        lambda content: content["state"].update(
            dataset_state={"train": {"domains": ["a", "b"], "proportions": [0.5]}, "eval": {}}
        ),
        "The state of the data in",
    ),
}


@pytest.mark.parametrize("name", CHANGED)
def test_foreign_or_mismatched_content(
    tmp_path: Path, checkpoint: Path, refused: Callable[..., str], name: str
) -> None:
    change, message = CHANGED[name]
    assert message in refused(changed(checkpoint, tmp_path / "broken.pt", change))


def test_values_beyond_the_dtype_asked_for(tmp_path: Path, checkpoint: Path, refused: Callable[..., str]) -> None:
    broken = changed(checkpoint, tmp_path / "large.pt", overflow)
    assert "has values beyond torch.float16. Use bfloat16" in refused(broken, "--dtype", "float16")


def test_files_that_are_no_checkpoint(tmp_path: Path, checkpoint: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "cut.pt").write_bytes(checkpoint.read_bytes()[:-1000])
    (tmp_path / "text.pt").write_text("weights")
    torch.save([1, 2], tmp_path / "list.pt")
    assert "is truncated or damaged, or not written by torch.save" in refused(tmp_path / "cut.pt")
    assert "is truncated or damaged, or not written by torch.save" in refused(tmp_path / "text.pt")
    assert "is not a Composer checkpoint" in refused(tmp_path / "list.pt")
    assert "There is no checkpoint" in refused(tmp_path / "none.pt")


def test_wrong_command_for_the_checkpoint(tmp_path: Path, checkpoint: Path, refused: Callable[..., str]) -> None:
    assert "Use `shear`" in refused(checkpoint, command="export")
    assert "Use `export`" in refused(dense(tmp_path / "dense"))


def test_code_in_a_checkpoint_is_refused_and_does_not_run(
    tmp_path: Path, checkpoint: Path, refused: Callable[..., str]
) -> None:
    marker = tmp_path / "ran"

    def infect(content: Content) -> None:
        content["state"]["algorithms"].append(("Evil", Payload(marker)))

    assert "holds posix.system, which could run code" in refused(changed(checkpoint, tmp_path / "evil.pt", infect))
    assert "holds posix.system, which could run code" in refused(sharded(checkpoint, tmp_path / "evil", infect))
    folder = sharded(checkpoint, tmp_path / "metadata")
    (folder / ".metadata").write_bytes(pickle.dumps(Metadata({}, planner_data=Payload(marker))))
    assert "holds posix.system, which could run code" in refused(folder)
    assert not marker.exists()


def test_sharded_checkpoint_with_files_missing_or_damaged(
    tmp_path: Path, checkpoint: Path, refused: Callable[..., str]
) -> None:
    folder = sharded(checkpoint, tmp_path / "sharded")
    metadata, (shard,) = folder / ".metadata", folder.glob("*.distcp")
    described, data = metadata.read_bytes(), shard.read_bytes()

    shard.write_bytes(data[: len(data) // 2])
    assert f"is truncated: it has {len(data) // 2} bytes of {len(data)}" in refused(folder)
    shard.unlink()
    assert f"lacks its file '{shard.name}'" in refused(folder)
    shard.write_bytes(data)
    metadata.write_bytes(described[:-10])
    assert "is truncated or damaged" in refused(folder)
    metadata.unlink()
    assert "has no .metadata file" in refused(folder)


def edit_metadata(folder: Path, change: Callable[[Metadata], None]) -> None:
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))


def test_sharded_checkpoint_whose_metadata_lies(tmp_path: Path, checkpoint: Path, refused: Callable[..., str]) -> None:
    def send(path: str, metadata: Metadata) -> None:
        next(info for index, info in metadata.storage_data.items() if NORM in index.fqn).relative_path = path

    def drop_pieces(metadata: Metadata) -> None:
        next(tensor for name, tensor in metadata.state_dict_metadata.items() if NORM in name).chunks.clear()

    def swap(metadata: Metadata) -> None:
        norm, head = (next(i for i in metadata.storage_data if name in i.fqn) for name in (NORM, "lm_head"))
        places = metadata.storage_data
        places[norm], places[head] = places[head], places[norm]

    def repeat(metadata: Metadata) -> None:
        first, second = (next(i for i in metadata.storage_data if name in i.fqn) for name in ("q_proj", "o_proj"))
        metadata.storage_data[first] = metadata.storage_data[second]

    def rename_path(metadata: Metadata) -> None:
        name = next(name for name in metadata.planner_data if name.endswith("rope_theta"))
        metadata.planner_data[name] = (*metadata.planner_data[name][:-1], "rope_thetb")

    changes: dict[str, tuple[Callable[[Metadata], None], str]] = {
        "outside": (partial(send, f"../{checkpoint.name}"), "lacks its file"),
        "pieces": (drop_pieces, "do not add up to its rows"),
        "swapped": (swap, "do not agree"),
        "twice": (repeat, "is truncated or damaged"),
        "renamed": (rename_path, "is truncated or damaged"),
        "unlisted": (lambda metadata: metadata.storage_data.clear(), "does not say where"),
    }
    for name, (change, message) in changes.items():
        folder = sharded(checkpoint, tmp_path / name)
        edit_metadata(folder, change)
        assert message in refused(folder)
