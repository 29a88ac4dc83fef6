"""Reference losses of models larger than a device, on several ranks, of data in an object store, and when killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llmshearing import storage
from llmshearing.errors import InputError
from llmshearing.reference_loss import evaluate as evaluation
from llmshearing.reference_loss.__main__ import main
from llmshearing.reference_loss.evaluate import evaluate
from llmshearing.reference_loss.fit import read_losses
from llmshearing.reference_loss.placement import Placement
from tests.conftest import REPOSITORY
from tests.object_store import Store
from tests.test_reference_loss import write_domain

VOCABULARY, SEQUENCE = 512, 32
DOMAINS = {"books": 13, "code": 6, "web": 9}
SHARED = REPOSITORY.parent / "shared"


def small_model(folder: Path, *, layers: int = 4, tied: bool = True) -> str:
    torch.manual_seed(layers)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=SEQUENCE, initializer_range=0.2, tie_word_embeddings=tied,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The eval split of three domains, compressed, and its manifest."""
    folder = tmp_path_factory.mktemp("data")
    for number, (domain, rows) in enumerate(DOMAINS.items()):
        tokens = np.random.default_rng(number).integers(0, VOCABULARY, (rows, SEQUENCE)).astype(np.uint16)
        write_domain(folder / "eval" / domain, tokens, compression="zstd")
    (folder / "manifest.json").write_text(json.dumps({"domains": {domain: {} for domain in DOMAINS}}))
    return folder


@pytest.fixture(params=["stories260K", "untied"])
def any_model(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A model that was trained, whose embeddings are tied; and one whose are not."""
    if request.param == "untied":
        return small_model(tmp_path / "model", tied=False)
    if not (SHARED / "models/stories260K").is_dir():
        pytest.skip("no ../shared/models/stories260K")
    return str(SHARED / "models/stories260K")


def upload(folder: Path, address: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            storage.upload(path, f"{address}/{path.relative_to(folder).as_posix()}")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_of_which_most_waits_on_disk_has_the_very_same_losses(any_model: str, data: Path, dtype: str) -> None:
    whole = evaluate(any_model, data, dtype=dtype)
    everything = evaluate(any_model, data, dtype=dtype, placement=Placement())
    size = sum(path.stat().st_size for path in Path(any_model).glob("*.safetensors")) // (
        1 if dtype == "float32" else 2
    )
    placement = Placement({"cpu": f"{size // 2 // 1000}KB"})
    with torch.device("cpu"):
        laid_out = evaluation.load_model(
            any_model, evaluation.causal_config(any_model), dtype=dtype, placement=placement
        )
    assert any(parameter.is_meta for parameter in laid_out.parameters())
    assert evaluate(any_model, data, dtype=dtype, placement=placement) == everything == whole


def test_options_of_the_layout_are_checked(
    model: str, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*options: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(["eval", model, str(data), *options])
        assert stopped.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "--max-memory and --offload are for --device-map auto" in refused("--max-memory", "0=1GB")
    assert "--max-memory has 'gpu=1GB'" in refused("--device-map", "auto", "--max-memory", "gpu=1GB")
    assert "--max-memory has 'cpu=much'" in refused("--device-map", "auto", "--max-memory", "cpu=much")
    assert f"Nothing of '{model}' fits into the memory" in refused("--device-map", "auto", "--max-memory", "cpu=1KB")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "needs the package 'accelerate'. Install llmshearing[real]" in refused("--device-map", "auto")


@pytest.mark.dist
def test_two_ranks_find_the_very_same_losses_as_one_process(
    model: str, data: Path, tmp_path: Path, store: Store
) -> None:
    upload(data, "s3://bucket/data")
    out = tmp_path / "losses.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [
        "-m",
        "llmshearing.reference_loss",
        "eval",
        model,
        "s3://bucket/data",
        "--out",
        str(out),
        "--batch-size",
        "2",
    ]
    command += ["--cache", str(tmp_path / "cache")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("Next: ") == 1
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = evaluate(model, data, batch_size=2)
    finally:
        torch.set_num_threads(threads)
    assert json.loads(out.read_text()) == {**alone, "data": "s3://bucket/data"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "losses.json"]


@pytest.fixture
def batches_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many batches were evaluated; the run is interrupted at the third of those that follow a 0 in it."""
    run: list[int] = []
    real = evaluation.sum_of_losses

    def interrupted(*arguments: Any) -> tuple[float, int]:
        run.append(1)
        if run[0] == 0 and len(run) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(evaluation, "sum_of_losses", interrupted)
    return run


@pytest.mark.parametrize("place", ["path", "address"])
def test_a_killed_evaluation_goes_on_at_the_next_domain(
    place: str, model: str, data: Path, tmp_path: Path, batches_run: list[int], store: Store
) -> None:
    out = str(tmp_path / "losses.json") if place == "path" else "s3://bucket/run/losses.json"
    expected = evaluate(model, data, batch_size=8)
    arguments = ["eval", model, str(data), "--out", out]
    batches_run[:] = [0]
    with pytest.raises(SystemExit):  # after both batches of books
        main(arguments)
    kept = json.loads(storage.read_bytes(f"{out}.unfinished"))
    assert list(kept["domains"]) == ["books"]
    batches_run.clear()
    main(arguments)
    assert len(batches_run) == 3  # one of code, two of web
    assert json.loads(storage.read_bytes(out)) == expected
    assert storage.info(f"{out}.unfinished") is None


def test_what_was_kept_of_other_settings_is_begun_anew(
    model: str, data: Path, tmp_path: Path, batches_run: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "losses.json"
    batches_run[:] = [0]
    with pytest.raises(SystemExit):
        main(["eval", model, str(data), "--out", str(out)])
    batches_run.clear()
    main(["eval", model, str(data), "--out", str(out), "--dtype", "bfloat16"])
    assert len(batches_run) == 5
    assert "of another model, other data or other settings" in caplog.text


def test_data_in_an_object_store_has_the_losses_that_it_has_here(
    model: str, data: Path, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = evaluate(model, data)
    upload(data, "s3://bucket/data")
    store.fail(path="shard.00000", status=500)
    there = evaluate(model, "s3://bucket/data", cache=tmp_path / "cache")
    assert there == {**here, "data": "s3://bucket/data"}
    store.requests.clear()
    assert evaluate(model, "s3://bucket/data", cache=tmp_path / "cache") == there
    assert [path for _, path in store.requests if "shard" in path] == []
    with pytest.raises(InputError, match="s3://bucket/none/manifest.json"):
        evaluate(model, "s3://bucket/none", cache=tmp_path / "other")


def test_losses_of_three_sizes_evaluated_apart_predict_a_fourth(
    data: Path, tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    outs = []
    for layers, place in ((1, str(tmp_path / "1.json")), (2, str(tmp_path / "2.json")), (3, "s3://bucket/3.json")):
        name = small_model(tmp_path / f"model{layers}", layers=layers)
        extra = ["--device-map", "auto", "--max-memory", "cpu=150KB"] if layers == 3 else []
        main(["eval", name, str(data), "--out", place, *extra])
        outs.append(place)
    main(["fit", *outs, "--num-parameters", "20000", "--out", "s3://bucket/fit.json"])
    fitted = json.loads(storage.read_bytes("s3://bucket/fit.json"))
    assert set(fitted["losses"]) == set(DOMAINS)
    assert [entry["losses"] for entry in fitted["fitted_to"]] == [entry.losses for entry in read_losses(outs)]


def test_losses_of_different_data_are_not_fitted_together(model: str, data: Path, tmp_path: Path) -> None:
    measured = evaluate(model, data)
    outs = []
    for number in range(3):
        digests = {**measured["digests"], **({"web": "another"} if number == 2 else {})}
        outs.append(tmp_path / f"{number}.json")
        outs[-1].write_text(json.dumps({**measured, "num_parameters": 10**number * 1000, "digests": digests}))
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *map(str, outs), "--num-parameters", "20000"])
    assert stopped.value.code == 2
