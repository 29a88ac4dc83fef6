"""``convert shear --fit`` on real checkpoints and text that the source itself wrote."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from streaming import MDSWriter
from transformers import AutoModelForCausalLM, PreTrainedModel

from llmshearing.convert.__main__ import main
from llmshearing.convert.choice import by_masks
from llmshearing.convert.commands import open_checkpoint, shear
from llmshearing.convert.fit import fit_state_dict, rows_to_fit_on
from llmshearing.errors import InputError
from tests.conftest import REPOSITORY
from tests.convert.checkpoints import pruned
from tests.forkserver import ForkServer
from tests.models import SIZES, make_model

LENGTH = 24


def source_of(checkpoint: Path, family: str) -> PreTrainedModel:
    model = make_model(family)
    state = torch.load(checkpoint, weights_only=False)["state"]["model"]
    model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in state.items()})
    return model


def write(folder: Path, rows: np.ndarray) -> Path:
    for domain, part in zip(("code", "web"), np.array_split(rows, 2), strict=True):
        columns = {"tokens": f"ndarray:uint16:{rows.shape[1]}"}
        with MDSWriter(out=str(folder / "train" / domain), columns=columns) as writer:
            for row in part:
                writer.write({"tokens": row.astype(np.uint16)})
    return folder


@pytest.fixture(scope="module", params=["llama3", "qwen2-tied", "gemma3"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A pruning checkpoint and text sampled from its weights."""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = pruned(folder / "run", family=request.param)
    torch.manual_seed(0)
    settings = {"max_new_tokens": LENGTH - 1, "min_new_tokens": LENGTH - 1, "do_sample": True, "pad_token_id": 0}
    start = torch.arange(64).unsqueeze(-1) + 8
    rows = source_of(checkpoint, request.param).generate(start, **settings)
    return checkpoint, write(folder / "data", rows.numpy())


def test_the_folder_is_of_the_same_shape_and_nearer_to_its_source(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, data = made
    shear(checkpoint, tmp_path / "cut")
    command = ["convert", "shear", str(checkpoint), str(tmp_path / "fitted"), "--fit", str(data)]
    monkeypatch.setattr(sys, "argv", [*command, "--fit-sequences", "40"])
    main()
    record = json.loads((tmp_path / "fitted/shearing.json").read_text())["fit"]
    assert (record["sequences"], record["tokens"], record["applied"]) == (40, 40 * LENGTH, True)
    assert record["losses"]["after"] < record["losses"]["before"]
    fitted, cut = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("fitted", "cut"))
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (fitted, cut)]
    assert shapes[0] == shapes[1]
    assert (tmp_path / "fitted/config.json").read_bytes() == (tmp_path / "cut/config.json").read_bytes()
    again = tmp_path / "again"
    shear(checkpoint, again, fit=data, fit_sequences=40, dtype=torch.bfloat16)
    assert AutoModelForCausalLM.from_pretrained(again, torch_dtype="auto").dtype == torch.bfloat16
    shear(checkpoint, again, fit=data, fit_sequences=40, overwrite=True)
    files = [folder / "model.safetensors" for folder in (again, tmp_path / "fitted")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_text_that_the_source_does_not_know_is_no_reason_to_change_it(
    made: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint, _ = made
    rows = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (64, LENGTH))
    data = write(tmp_path / "data", rows)
    shear(checkpoint, tmp_path / "cut")
    shear(checkpoint, tmp_path / "fitted", fit=data, fit_sequences=40)
    record = json.loads((tmp_path / "fitted/shearing.json").read_text())["fit"]
    worse = record["losses"]["after"] >= record["losses"]["before"]
    assert record["applied"] != worse
    assert ("The fit does not lower the loss" in caplog.text) == worse
    same = (tmp_path / "fitted/model.safetensors").read_bytes() == (tmp_path / "cut/model.safetensors").read_bytes()
    assert same == worse


@pytest.mark.parametrize(
    ("rows", "sequences", "message"),
    [
        (np.zeros((4, LENGTH)), 40, "a fit needs at least 5"),
        (np.ones((12, 2)), 40, "A fit of .* inputs needs as many tokens at least"),
        (np.full((64, LENGTH), SIZES["vocab_size"]), 40, "vocabulary has 96"),
        (np.zeros((64, 65)), 40, "sequences of 65 tokens, but the model takes 2 to 64"),
        (np.zeros((64, LENGTH)), 1, "must be at least 2"),
    ],
)
def test_data_that_does_not_fit_is_refused_and_leaves_nothing(
    made: tuple[Path, Path], tmp_path: Path, rows: np.ndarray, sequences: int, message: str
) -> None:
    data = write(tmp_path / "data", rows)
    with pytest.raises(InputError, match=message):
        shear(made[0], tmp_path / "out", fit=data, fit_sequences=sequences)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_text_of_padding_alone_is_refused(tmp_path: Path) -> None:
    checkpoint = pruned(tmp_path / "run", family="gemma3")  # whose padding is embedded as zero
    data = write(tmp_path / "data", np.zeros((64, LENGTH)))
    with pytest.raises(InputError, match="Activations at layer 0's .* are all zero. Take other text"):
        shear(checkpoint, tmp_path / "out", fit=data)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("num_domains", [1, 3, 5, 10])
def test_what_is_fitted_on_and_what_is_held_out_are_from_everywhere(tmp_path: Path, num_domains: int) -> None:
    number = 400
    for domain in range(num_domains):
        with MDSWriter(out=str(tmp_path / f"train/{domain}"), columns={"tokens": "ndarray:uint16:2"}) as writer:
            for row in range(number):
                writer.write({"tokens": np.array([domain, row], np.uint16)})
    fitted_on, others = rows_to_fit_on(tmp_path, 80, number, 8)
    assert (len(fitted_on), len(others)) == (80, 20)
    assert not {tuple(row) for row in fitted_on.tolist()} & {tuple(row) for row in others.tolist()}
    domains = torch.bincount(fitted_on[:, 0], minlength=num_domains)
    assert domains.min() > 0.7 * 80 / num_domains
    assert len(others[:, 0].unique()) > num_domains / 2
    for domain in range(num_domains):
        places = torch.cat([fitted_on, others])
        places = places[places[:, 0] == domain, 1].sort().values
        distances = places.diff()
        assert places[0] < distances.max()
        assert places[-1] >= number - 2 * distances.max()
        assert distances.max() - distances.min() <= 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_among_its_layers_it_leaves_nothing_for_the_next(
    made: tuple[Path, Path], tmp_path: Path, forked: ForkServer, number: signal.Signals
) -> None:
    checkpoint, data = made
    command = [sys.executable, "-m", "llmshearing.convert", "shear", str(checkpoint), str(tmp_path / "out")]
    command += ["--fit", str(data), "--fit-sequences", "40"]
    process = forked.start(command, cwd=REPOSITORY)
    while "Fitted layer 1 of" not in process.read()[1]:
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(number)
    assert process.wait(timeout=60) == -number
    if number == signal.SIGTERM:
        assert list(tmp_path.iterdir()) == []
    done = forked.run(command, cwd=REPOSITORY, check=True)
    assert ("left by a conversion that was killed" in done.stderr) == (number == signal.SIGKILL)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    shear(checkpoint, tmp_path / "whole", fit=data, fit_sequences=40)
    files = [tmp_path / name / "model.safetensors" for name in ("out", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_state_dict_is_fitted_like_a_checkpoint(made: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, data = made
    shear(checkpoint, tmp_path / "out", fit=data, fit_sequences=40)
    with open_checkpoint(checkpoint) as opened:
        config, _ = opened.huggingface()
        shears = by_masks(opened, config)
        tensors = {name: tensor.read() for name, tensor in opened.tensors.items() if name != "lm_head.weight"}
        if not shears.source.tie_word_embeddings:
            tensors["lm_head.weight"] = opened.tensors["lm_head.weight"].read()
    fitted, record = fit_state_dict(tensors, config, shears, data=data, num_sequences=40)
    written = load_file(tmp_path / "out/model.safetensors")
    assert fitted.keys() == written.keys()
    assert all(torch.equal(tensor, written[name]) for name, tensor in fitted.items())
    assert record == json.loads((tmp_path / "out/shearing.json").read_text())["fit"]
    if shears.source.tie_word_embeddings:  # of which a model's own state dict has both names
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        both, _ = fit_state_dict(tensors, config, shears, data=data, num_sequences=40)
        assert both.keys() == {*fitted, "lm_head.weight"}
        assert torch.equal(both.pop("lm_head.weight"), fitted["model.embed_tokens.weight"])
        assert all(torch.equal(tensor, fitted[name]) for name, tensor in both.items())
