"""Bad input to the reference losses' commands, and places that cannot be written."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from llmshearing.reference_loss.__main__ import main
from tests.conftest import no_more_than
from tests.test_reference_loss import LLAMA2, write_domain

SEQUENCE = 16


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model and its data."""
    folder = tmp_path_factory.mktemp("made")
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=SEQUENCE,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    write_domain(folder / "data" / "eval" / "cc", np.zeros((5, SEQUENCE), np.uint16))
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which the command ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    return error


def damage_model(folder: Path, kind: str) -> None:
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    match kind:
        case "list":
            (folder / "config.json").write_text("[1]")
        case "torn":
            (folder / "config.json").write_text('{"model_type": "lla')
        case "unknown":
            (folder / "config.json").write_text('{"model_type": "nothing"}')
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "missing":
            save_file(
                {name: tensor for name, tensor in tensors.items() if "q_proj" not in name}, weights, {"format": "pt"}
            )
        case "shape":
            save_file({**tensors, "lm_head.weight": torch.zeros(3, 3)}, weights, {"format": "pt"})
        case "nan":
            tensors["model.norm.weight"][1] = torch.nan
            save_file(tensors, weights, {"format": "pt"})


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("list", "Cannot load"),
        ("torn", "Cannot load"),
        ("unknown", "Cannot load"),
        ("truncated", "Cannot load"),
        ("missing", "lacks 1 tensors, such as 'model.layers.0.self_attn.q_proj.weight'"),
        ("shape", "Cannot load"),
        ("nan", "'model.norm.weight' of .* is not finite"),
    ],
)
def test_a_damaged_model_is_named(kind: str, message: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage_model(copy / "model", kind)
    error = refused(["eval", str(copy / "model"), str(copy / "data")], capsys)
    assert str(copy / "model") in error
    assert re.search(message, error), error


def damage_data(folder: Path, kind: str) -> None:
    index, shard = folder / "index.json", folder / "shard.00000.mds"
    match kind:
        case "list" | "empty" | "nothing":
            index.write_text({"list": "[1]", "empty": '{"shards": [{}]}', "nothing": '{"shards": []}'}[kind])
        case "torn":
            index.write_text(index.read_text()[:-40])
        case "truncated":
            shard.write_bytes(shard.read_bytes()[:-10])
        case "long":
            shutil.rmtree(folder)
            write_domain(folder, np.zeros((5, SEQUENCE + 1), np.uint16))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("list", "is no index of shards"),
        ("empty", "is no index of shards"),
        ("nothing", "is no index of shards|has no sequences"),
        ("torn", "is not valid JSON"),
        ("truncated", r"shard\.00000\.mds' has \d+ bytes, where the index says \d+"),
        ("long", "sequences of 17 tokens.*at most 16"),
    ],
)
def test_damaged_data_is_named_before_the_weights_are_read(
    kind: str, message: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "model" / "model.safetensors").unlink()
    damage_data(copy / "data" / "eval" / "cc", kind)
    error = refused(["eval", str(copy / "model"), str(copy / "data")], capsys)
    assert re.search(message, error), error


@pytest.mark.parametrize("out", ["file/out.json", "folder", "/proc/out.json", "/dev/full", "x" * 300, ""])
@pytest.mark.parametrize("command", ["eval", "fit"])
def test_where_nothing_can_be_written_is_found_out_before_the_work(
    command: str, out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    place = str(tmp_path / out) if out else out
    # Neither the model nor the losses exist, which would be found out next.
    rest = ["model", "data"] if command == "eval" else ["nowhere.json", "--num-parameters", "5"]
    error = refused([command, *rest, "--out", place], capsys)
    assert re.search("Cannot write|is no file", error), error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_result_that_cannot_be_written_in_the_end_is_on_stdout(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with no_more_than(10), pytest.raises(SystemExit) as stopped:
        main(["eval", str(made / "model"), str(made / "data"), "--out", str(tmp_path / "losses.json")])
    assert stopped.value.code == 2
    output, error = capsys.readouterr()
    assert json.loads(output)["tokens"] == {"cc": 5 * (SEQUENCE - 1)}
    assert f"error: Cannot write '{tmp_path / 'losses.json'}': File too large. The result is on stdout." in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["abc", "-1", "nan", "0", "9" * 400, "1e9"])
def test_numbers_of_parameters_that_are_none_are_refused(
    value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "losses.json"
    path.write_text(json.dumps({"models": [vars(entry) for entry in LLAMA2]}))
    with pytest.raises(SystemExit) as stopped:
        main(["fit", str(path), f"--num-parameters={value}"])
    assert stopped.value.code == 2
    assert "--num-parameters" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"",
        b"[" * 100_000,
        b"{}",
        b"null",
        *(
            json.dumps({"num_parameters": size, "losses": losses}).encode()
            for size, losses in [
                (0.5, {"cc": 1.0}), (10**400, {"cc": 1.0}), (float("nan"), {"cc": 1.0}), (True, {"cc": 1.0}),
                (5, {"cc": 10**400}), (5, {"cc": float("inf")}), (5, {"cc": None}), (5, [1.0]), (5, {}),
            ]
        ),
    ],
)  # fmt: skip
def test_losses_that_are_none_are_refused(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "losses.json"
    path.write_bytes(content)
    good = [tmp_path / f"{entry.model}.json" for entry in LLAMA2]
    for other, entry in zip(good, LLAMA2, strict=True):
        other.write_text(json.dumps({**vars(entry), "losses": {"cc": entry.losses["cc"]}}))
    error = refused(["fit", str(path), *map(str, good), "--num-parameters", "5"], capsys)
    assert str(path) in error or "'5 parameters'" in error


def test_a_law_that_gives_no_loss_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries: list[dict[str, Any]] = [
        {"num_parameters": 10 ** (8 + number), "losses": {"cc": loss}} for number, loss in enumerate((3.0, 2.6, 2.25))
    ]
    (tmp_path / "losses.json").write_text(json.dumps(entries))
    error = refused(["fit", str(tmp_path / "losses.json"), "--num-parameters", str(10**30)], capsys)
    assert "domain 'cc' (3.0, 2.6, 2.25)" in error
