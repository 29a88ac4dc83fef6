"""What is kept of results, and when it is used."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from llmshearing.downstream.evaluate import downstream
from tests.conftest import REPOSITORY
from tests.downstream.helpers import Counted
from tests.forkserver import ForkServer

pytest.importorskip("lm_eval", reason="no lm-eval: pip install 'llmshearing[eval]'")


def test_what_is_killed_goes_on_and_nothing_is_evaluated_twice(
    world: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, kept = [world["knows"], world["random"]], tmp_path / "kept"
    whole = downstream(models, world["data"], limit=8)
    with monkeypatch.context() as patch:
        Counted(patch, fails_at=5)
        with pytest.raises(KeyboardInterrupt):
            downstream(models, world["data"], limit=8, cache=kept)
    assert len(list(kept.iterdir())) == 5
    counted = Counted(monkeypatch)
    assert downstream(models, world["data"], limit=8, cache=kept) == whole  # also from other files of the same content
    assert counted.names == ["choices_two", "completion_one", "completion_two"]
    moved = str(tmp_path / "moved")
    shutil.copytree(world["knows"], moved)
    assert downstream([moved], world["data"], limit=8, cache=kept)["models"][moved] == whole["models"][world["knows"]]
    assert len(counted.names) == 3
    for changes in ({"limit": 9}, {"dtype": "bfloat16", "limit": 8}):
        before = len(counted.names)
        downstream([world["knows"]], world["data"], cache=kept, **changes)
        assert len(counted.names) == before + 4


def test_a_changed_model_and_damaged_results_are_evaluated_again(
    world: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, kept = str(tmp_path / "model"), tmp_path / "kept"
    shutil.copytree(world["knows"], model)
    first = downstream([model], world["data"], limit=8, cache=kept)
    counted = Counted(monkeypatch)
    file = next(path for path in kept.iterdir() if path.name.startswith("choices_one"))
    file.write_text(file.read_text()[:-20])
    assert downstream([model], world["data"], limit=8, cache=kept) == first
    assert counted.names == ["choices_one"]
    assert f"The cached result '{file}' is not used" in caplog.text
    weights = Path(model) / "model.safetensors"
    times = weights.stat()
    tensors = load_file(weights)
    tensors["model.norm.weight"] = -tensors["model.norm.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))  # nor do size and time tell
    assert weights.stat().st_size == times.st_size
    again = downstream([model], world["data"], limit=8, cache=kept)
    assert len(counted.names) == 1 + 4
    assert again["models"][model]["average"] < first["models"][model]["average"]


def test_two_processes_with_one_cache(world: dict[str, str], tmp_path: Path, forked: ForkServer) -> None:
    command = ["python", "-m", "llmshearing.downstream", world["knows"], world["random"], "--suite", world["data"]]
    command += ["--limit", "8", "--cache", str(tmp_path / "kept"), "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    outs = [tmp_path / f"{number}.json" for number in range(2)]
    running = [forked.start([*command, str(out)], cwd=tmp_path, env=environment) for out in outs]
    assert [process.wait(240) for process in running] == [0, 0], [process.read() for process in running]
    assert outs[0].read_text() == outs[1].read_text()
    assert all(json.loads(path.read_text())["result"] for path in (tmp_path / "kept").iterdir())
    assert len(list((tmp_path / "kept").iterdir())) == 8
