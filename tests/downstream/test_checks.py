"""What is refused before anything is computed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmshearing.downstream import tasks
from llmshearing.downstream.evaluate import downstream
from llmshearing.errors import InputError
from llmshearing.models import hub
from tests.downstream.helpers import Counted
from tests.models import make_model

pytest.importorskip("lm_eval", reason="no lm-eval: pip install 'llmshearing[eval]'")


def test_everything_is_checked_before_anything_is_evaluated(
    world: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    broken = {name: tmp_path / name for name in ("cut", "lacking", "untold", "small")}
    for folder in broken.values():
        shutil.copytree(world["random"], folder)
    weights = broken["cut"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    tensors = load_file(broken["lacking"] / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, broken["lacking"] / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (broken["untold"] / name).unlink()
    make_model("llama3", vocab_size=90).save_pretrained(broken["small"])
    messages = {
        "cut": "model.safetensors' is truncated or damaged",
        "lacking": "lacks 1 tensors, such as 'model.layers.1.mlp.up_proj.weight'",
        "untold": "has no tokenizer that can be read",
        "small": "has 96 tokens, but its model has 90",
    }
    for name, message in messages.items():
        with pytest.raises(InputError, match=message):
            downstream([world["knows"], str(broken[name])], world["data"])
    suite = tmp_path / "suite.yaml"
    data = f"{{data: {world['data']}}}"
    for line, message in (
        (f"[{data}, {{file: nowhere.jsonl}}]", "There is no file 'nowhere.jsonl' of questions"),
        (f"[{data}, {data}]", "Two tasks of suite 'suite' are called 'choices_one'"),
        (f"[{data}, {{task: arc_eazy}}]", "lm-eval has no task 'arc_eazy'. Did you mean arc_easy"),
        (f"[{data}, {{data: {world['data']}, kind: completion, metric: exact_match}}]", "Unknown metric of task"),
    ):
        suite.write_text(f"tasks: {line}")
        with pytest.raises(InputError, match=message):
            downstream([world["knows"]], suite)
    for settings, message in (
        ({"limit": 0}, "--limit is 0"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"parallelize": True}, "there is none here"),
        ({"tokens": [1.0, 2.0]}, "2 numbers for 1 models"),
        ({"tokens": [-1.0]}, "above 0"),
    ):
        if not (settings.get("parallelize") and torch.cuda.is_available()):
            with pytest.raises(InputError, match=message):
                downstream([world["knows"]], world["data"], **settings)
    assert counted.names == []


def test_without_network_a_task_of_the_hub_is_named_at_once(
    world: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "is_reachable", lambda: False)
    monkeypatch.setattr(hub, "is_reachable", lambda: False)
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    before = datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE
    with pytest.raises(
        InputError, match="The data of task 'sciq' is not on this machine, and .* cannot be reached. Run"
    ):
        downstream([world["knows"]], "quick")
    assert before == (datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE)


def test_without_the_extra_it_says_what_to_install(world: dict[str, str], tmp_path: Path) -> None:
    """A Python that does not find lm-eval: its modules are there, and hidden from it."""
    code = (
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "hide = lambda name, *rest: None if name.split('.')[0] == 'lm_eval' else find(name, *rest)\n"
        "PathFinder.find_spec = staticmethod(hide)\n"
        "import llmshearing.downstream.callback, llmshearing.report.page\n"
        "from llmshearing.downstream.__main__ import main\n"
        f"main([{world['knows']!r}, '--suite', {world['data']!r}])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: Downstream tasks need lm-eval: pip install 'llmshearing[eval]'."
    assert list(tmp_path.iterdir()) == []
