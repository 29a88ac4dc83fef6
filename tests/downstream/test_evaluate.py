"""Real models on real suites: known answers, what is kept of them, and what is refused before anything is computed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from llmshearing.convert.commands import shear
from llmshearing.downstream import evaluate, tasks
from llmshearing.downstream.__main__ import main
from llmshearing.downstream.evaluate import downstream
from llmshearing.errors import InputError
from llmshearing.models import hub
from llmshearing.score import score_model
from llmshearing.text_quality import text_quality
from tests.conftest import REPOSITORY
from tests.downstream.helpers import write, write_generation, write_questions
from tests.forkserver import ForkServer
from tests.models import make_model

pytest.importorskip("lm_eval", reason="no lm-eval: pip install 'llmshearing[eval]'")

SHARED = Path(__file__).parents[3] / "shared"


def test_a_model_finds_what_it_has_learned_and_random_weights_are_at_chance(
    world: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [world["knows"], world["random"]]
    out = tmp_path / "downstream.json"
    main(
        [
            *models,
            "--suite",
            world["data"],
            "--cache",
            str(tmp_path / "kept"),
            "--out",
            str(out),
            "--tokens",
            "1e6",
            "2e6",
        ]
    )
    found = json.loads(out.read_text())
    knows, random = (found["models"][name] for name in models)
    assert set(knows["results"]) == {
        f"{kind}_{domain}" for kind in ("choices", "completion") for domain in ("one", "two")
    }
    for domain, number in (("one", 80), ("two", 40)):
        choices = knows["results"][f"choices_{domain}"]
        assert choices["metrics"]["acc"] > 0.95
        assert choices["num_questions"] == number
        assert knows["results"][f"completion_{domain}"]["metrics"]["perplexity"] < 2
        four_errors = 4 * np.sqrt(0.25 * 0.75 / number)
        assert random["results"][f"choices_{domain}"]["metrics"]["acc"] == pytest.approx(0.25, abs=four_errors)
        assert random["results"][f"completion_{domain}"]["metrics"]["perplexity"] > 50  # of 96 words
    assert knows["average"] > 0.9 > random["average"]
    table = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in table[2].split("|")[1:4]] == [
        "knows",
        f"{knows['num_parameters'] / 1e3:.3g}k",
        "1M",
    ]
    assert len(table) == 4


def test_choices_are_answered_as_text_quality_answers_them(world: dict[str, str]) -> None:
    """Words are tokens here, so lm-eval's likelihoods must come to the same answers as ours, question by question."""
    for name in ("knows", "random"):
        ours = text_quality([world[name]], world[name], world["data"])[world[name]]["choices"]
        theirs = downstream([world[name]], world["data"])["models"][world[name]]["results"]
        # lm-eval puts <s> before the passage, which moves a random model's close calls.
        for domain in ("one", "two"):
            assert theirs[f"choices_{domain}"]["metrics"]["acc"] == pytest.approx(ours[domain], abs=0.1)


def test_files_of_questions_with_shots(world: dict[str, str], tmp_path: Path) -> None:
    write_questions(tmp_path / "questions.jsonl")
    suite = tmp_path / "suite.json"
    entry = {"file": str(tmp_path / "questions.jsonl"), "kind": "choices"}
    suite.write_text(json.dumps({"tasks": [entry, {**entry, "shots": 2, "name": "shown"}]}))
    found = downstream([world["knows"]], suite)
    results = found["models"][world["knows"]]["results"]
    assert results["questions"]["metrics"]["acc"] == 1.0
    assert found["tasks"]["shown"]["shots"] == 2
    assert results["shown"]["num_questions"] == 12
    suite.write_text(json.dumps({"tasks": [{**entry, "shots": 12}]}))
    with pytest.raises(InputError, match="'questions' has 12 questions, too few for 12 shots"):
        downstream([world["knows"]], suite)


def test_a_task_that_is_defined_as_lm_eval_does(world: dict[str, str], tmp_path: Path) -> None:
    write_questions(tmp_path / "questions.jsonl")
    (tmp_path / "own.yaml").write_text(
        f"""
task: own_task
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/questions.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: context
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""
    )
    suite = tmp_path / "suite.yaml"
    suite.write_text(f"tasks: [{{task: {tmp_path}/own.yaml, name: own}}]")
    kept = tmp_path / "kept"
    found = downstream([world["knows"]], suite, cache=kept)["models"][world["knows"]]
    assert found["results"]["own"]["metrics"] == {"acc": 1.0}
    assert [path.name.split("-")[0] for path in kept.iterdir()] == ["own_task"]
    suite.write_text(f"tasks: [{{task: {tmp_path}/own.yaml, metric: f1}}]")
    with pytest.raises(InputError, match="Unknown metric of task '.*own.yaml' 'f1'. Known: acc"):
        downstream([world["knows"]], suite)


def test_a_task_of_generated_text(world: dict[str, str], tmp_path: Path) -> None:
    found = downstream([world["knows"], world["random"]], write_generation(tmp_path))["models"]
    assert found[world["knows"]]["results"]["next"] == {
        "metrics": {"exact_match": 1.0},
        "stderr": {"exact_match": 0.0},
        "num_questions": 7,
    }
    assert found[world["random"]]["average"] < 0.5


class Counted:
    """How many tasks are really evaluated."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails_at: int = -1) -> None:
        self.names: list[str] = []
        real = evaluate.evaluate_task

        def counting(lm: Any, task: Any, **settings: Any) -> Any:
            if len(self.names) == fails_at:
                raise KeyboardInterrupt
            self.names.append(task.name)
            return real(lm, task, **settings)

        monkeypatch.setattr(evaluate, "evaluate_task", counting)


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
        "untold": "has no tokenizer, which downstream tasks need",
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


@pytest.mark.dist
def test_ranks_find_what_one_process_finds(world: dict[str, str], tmp_path: Path) -> None:
    words = [world["knows"], "--suite", world["data"], "--limit", "9", "--cache", str(tmp_path / "kept")]
    out = tmp_path / "found.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "llmshearing.downstream", *words, "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("| knows") == 1
    alone = downstream([world["knows"]], world["data"], limit=9)["models"][world["knows"]]["results"]
    for task, result in json.loads(out.read_text())["models"][world["knows"]]["results"].items():
        assert result["num_questions"] == 9
        assert result["metrics"] == pytest.approx(alone[task]["metrics"], rel=1e-4)


@pytest.mark.skipif(not (SHARED / "models/stories260K").is_dir(), reason="no ../shared/models/stories260K")
def test_a_real_source_beats_what_is_sheared_from_it_and_that_beats_nothing(tmp_path: Path) -> None:
    """A model of stories on stories: real text, through a real tokenizer."""
    model, data = str(SHARED / "models/stories260K"), tmp_path / "data"
    rows = np.load(SHARED / "golden/stories_self/rows.npy")[:192, :128]
    write(data / "train/stories", rows[:128])
    write(data / "eval/stories", rows[128:])
    score_model(model, tmp_path / "scores.safetensors", data=data, num_sequences=8)
    target = {"hidden_size": 32, "intermediate_size": 86}
    sheared = str(tmp_path / "sheared")
    shear(model, sheared, scores=tmp_path / "scores.safetensors", target=target)
    found = downstream([model, sheared], data, batch_size=32)["models"]
    of_source, of_sheared = (
        {task: result["metrics"] for task, result in found[name]["results"].items()} for name in (model, sheared)
    )
    assert of_source["choices_stories"]["acc"] > 0.8
    assert of_source["choices_stories"]["acc"] > of_sheared["choices_stories"]["acc"] + 0.2
    assert of_source["completion_stories"]["acc"] > of_sheared["completion_stories"]["acc"] + 0.2
    assert of_source["completion_stories"]["perplexity"] < 0.1 * of_sheared["completion_stories"]["perplexity"]
