"""What the stages of a run computed, and what that is worth next to training from scratch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmshearing import storage
from llmshearing.architecture.shapes import ModelShape
from llmshearing.compute import COMPUTE, fit_flops, forward_flops, score_flops, training_flops, write_training_compute
from llmshearing.errors import InputError
from llmshearing.report.__main__ import main
from llmshearing.report.compute import as_text, compute
from tests.object_store import Store

LLAMA2_7B = ModelShape(4096, 11008, 32, 32, 32, 128, 32000, False)
LLAMA2_1B = ModelShape(2048, 5504, 24, 16, 16, 128, 32000, False)


def stage(
    folder: Path, losses: list[float], *, model: float = 6.0, teacher: float = 0.0, domain: str = "web", **costs: float
) -> Path:
    """A run of 10 tokens a batch, evaluated after each."""
    folder.mkdir(parents=True)
    rows = [
        {"batch": batch, "tokens": 10 * batch, "time": 1.0, f"metrics/{domain}/LanguageCrossEntropy": loss}
        for batch, loss in enumerate(losses, start=1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"model": model, "teacher": teacher, "evaluation": 0.0, "scores": 0.0, "num_parameters": 100, **costs}
    (folder / COMPUTE).write_text(json.dumps(values))
    return folder


def test_all_work_is_added_up_and_compared_where_scratch_was_at_the_loss(tmp_path: Path) -> None:
    stage(tmp_path / "prune", [4.0], scores=50.0)
    stage(tmp_path / "train", [3.5, 3.0], teacher=2.0, evaluation=7.0)
    stage(tmp_path / "control", [6.0, 5.0, 4.0, 2.0])
    found = compute([tmp_path], against="control")
    assert {part.name: part.flops for part in found.parts} == {
        "prune: scores": 50.0,
        "prune: training": 10 * 6.0,
        "train: training": 20 * 6.0,
        "train: teacher": 20 * 2.0,
        "train: evaluation": 2 * 7.0,
    }
    assert found.total == 284.0
    assert (found.loss, found.reached) == (3.0, True)
    assert found.other_flops == pytest.approx(35 * 6.0)  # halfway between 4 nats at 30 tokens and 2 at 40
    assert "'control' was at 3.000 nats after 210 FLOP: this took 135.2% of that." in as_text(found)


def test_a_scratch_run_that_ends_short_is_a_bound(tmp_path: Path) -> None:
    stage(tmp_path / "mine", [3.0])
    stage(tmp_path / "scratch", [6.0, 5.0, 4.5])
    found = compute([tmp_path / "mine"], against=tmp_path / "scratch")
    assert found == compute([tmp_path], against="scratch")
    assert compute([tmp_path], without=["scratch"]).total == found.total
    assert (found.other_flops, found.reached, found.other_loss) == (180.0, False, 4.5)
    assert "ended at 4.500 nats after 180 FLOP, short of 3.000: this took less than 33.3%" in as_text(found)


def test_scores_and_fit_of_shearing_count_once(tmp_path: Path, shearing: dict[str, Any]) -> None:
    stage(tmp_path / "train", [3.0])
    record = {**shearing, "scores": {"flops": 11.0}, "fit": {"flops": 5.0}}
    for place in ("sheared", "train/checkpoints"):  # the same record, handed on
        (tmp_path / place).mkdir()
        (tmp_path / place / "shearing.json").write_text(json.dumps(record))
    parts = {part.name: part.flops for part in compute([tmp_path]).parts}
    assert parts == {"train: training": 60.0, "shearing: scores": 11.0, "shearing: fit": 5.0}
    stage(tmp_path / "prune", [4.0], scores=11.0)
    parts = {part.name: part.flops for part in compute([tmp_path]).parts}
    assert (parts["prune: scores"], "shearing: scores" in parts) == (11.0, False)


def test_nothing_counts_twice_or_not_at_all_whatever_folders_are_given(
    tmp_path: Path, shearing: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stage(Path("a/prune"), [4.0])
    stage(Path("a/control"), [6.0, 5.0, 2.0])
    stage(Path("b/train"), [3.0, 2.5])
    for place in ("a/sheared", "b/final"):  # handed on to another run
        Path(place).mkdir()
        Path(place, "shearing.json").write_text(json.dumps({**shearing, "fit": {"flops": 5.0}}))
    wanted = {"prune: training": 60.0, "train: training": 120.0, "shearing: fit": 5.0}
    for folders, against in (
        ("a b", "control"),
        ("a b", "a/control"),
        ("a/../a a/prune b", tmp_path / "a" / "control"),
    ):
        found = compute(folders.split(), against=against)
        assert {part.name: part.flops for part in found.parts} == wanted
        assert (found.total, found.other) == (185.0, "control")
    stage(Path("c/train"), [2.0])
    with pytest.raises(InputError, match="Two stages are called 'train': '.*b/train' and '.*c/train'. Rename a folder"):
        compute(["a", "b", "c"], against="control")


def test_a_run_at_an_address_is_left_out_where_it_lies_in_one_that_is_counted(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage(tmp_path / "train", [3.0])
    stage(tmp_path / "control", [6.0, 2.0])
    for name in storage.files_below(tmp_path):
        storage.upload(tmp_path / name, f"s3://bucket/runs/mine/{name}")
    for against in ("control", "s3://bucket/runs/mine/control", "s3://bucket/runs/mine/control/"):
        main(["compute", "s3://bucket/runs/mine", "--against", against, "--json"])
        found = json.loads(capsys.readouterr().out)
        assert found["flops"] == {"train: training": 60.0}
        assert found["other"]["name"] == "control"


@pytest.fixture
def shearing() -> dict[str, Any]:
    """Of a model that kept everything."""
    sizes = {"hidden_size": 2, "intermediate_size": 2, "num_hidden_layers": 1, "num_attention_heads": 1}
    shape = {**sizes, "num_key_value_heads": 1}
    per_layer = [{"layer": 0, "intermediate_size": [0, 1], "num_attention_heads": [0]}]
    kept = {"layers": [0], "hidden_size": [0, 1], "per_layer": per_layer}
    return {"source": shape, "target": shape, "kept": kept}


def test_what_cannot_be_compared_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = stage(tmp_path / "mine", [3.0])
    other = stage(tmp_path / "other", [3.0], num_parameters=99)
    with pytest.raises(InputError, match="trained 99 parameters, 'mine' 100. Compare with the same shape"):
        compute([mine], against=other)
    code = stage(tmp_path / "code", [3.0], domain="code")
    with pytest.raises(InputError, match="'mine' evaluated web, 'code' code: their losses cannot be compared"):
        compute([mine], against=code)
    with pytest.raises(InputError, match="'nowhere' is neither a folder nor one of the stages mine"):
        compute([mine], against="nowhere")
    with pytest.raises(InputError, match="stage in --without 'min'. Did you mean 'mine'"):
        compute([mine], without=["min"])
    with pytest.raises(InputError, match="No stage is left to count"):
        compute([mine], against="mine")
    (mine / COMPUTE).write_text("{}")
    with pytest.raises(InputError, match="does not say what a token cost"):
        compute([mine])
    (mine / COMPUTE).unlink()
    with pytest.raises(SystemExit, match="2"):
        main(["compute", str(mine)])
    assert "Stage 'mine' does not say what its tokens cost" in capsys.readouterr().err


def test_the_command_writes_a_table_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine, scratch = stage(tmp_path / "mine", [3.0]), stage(tmp_path / "scratch", [4.0, 3.0])
    main(["compute", str(mine), "--against", str(scratch)])
    assert "| mine: training | 60 | 100.0% |" in capsys.readouterr().out
    main(["compute", str(mine), "--against", str(scratch), "--json"])
    assert json.loads(capsys.readouterr().out) == {
        "flops": {"mine: training": 60.0},
        "total": 60.0,
        "loss": 3.0,
        "other": {"name": "scratch", "flops": 120.0, "reached": True, "loss": 3.0},
        "ratio": 0.5,
    }


def test_costs_at_the_papers_sizes(tmp_path: Path) -> None:
    """0.4 B tokens with masks on 7B, 50 B more of 1.3B, next to 1 T of that from scratch."""
    settings: dict[str, Any] = {"seq_len": 4096, "checkpointing": False, "eval_tokens": 0}
    for name, shape, tokens in (("prune", LLAMA2_7B, 0.4e9), ("train", LLAMA2_1B, 50e9), ("control", LLAMA2_1B, 1e12)):
        folder = stage(tmp_path / name, [2.0])
        row = {"batch": 1, "tokens": tokens, "time": 1.0, "metrics/web/LanguageCrossEntropy": 2.0}
        (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        write_training_compute(folder, shape, None, **settings)
    found = compute([tmp_path], against="control")
    assert found.total / found.other_flops == pytest.approx(0.052, abs=0.002)


def test_scores_and_fits_cost_what_their_passes_do() -> None:
    forward = forward_flops(LLAMA2_7B, seq_len=2048)
    assert training_flops(LLAMA2_7B, seq_len=2048, checkpointing=False) == 3 * forward
    assert score_flops(LLAMA2_7B, tokens=10, seq_len=2048) == 10 * 17 * forward
    small = forward_flops(LLAMA2_1B, seq_len=2048)
    fit = fit_flops(LLAMA2_7B, LLAMA2_1B, tokens=10, held_out=2, seq_len=2048)
    assert fit == 10 * (forward + 3 * small) + 2 * (forward + 2 * small)
