"""Real models on real suites: known answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llmshearing.downstream import tasks
from llmshearing.downstream.__main__ import main
from llmshearing.downstream.evaluate import downstream
from llmshearing.downstream.suites import read_suite
from llmshearing.errors import InputError
from llmshearing.text_quality import text_quality
from tests.conftest import REPOSITORY
from tests.downstream.helpers import words, write_generation, write_group, write_questions
from tests.repeats import stories

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
        for domain in ("one", "two"):
            assert theirs[f"choices_{domain}"]["metrics"]["acc"] == pytest.approx(ours[domain])


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


def test_a_group_counts_as_one_task_and_its_tasks_have_the_shots(
    world: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As MMLU is: lm-eval knows a group by name."""
    from lm_eval.tasks import TaskManager

    sizes = write_group(tmp_path)
    manager = TaskManager(include_path=tmp_path, include_defaults=False)
    monkeypatch.setattr(tasks, "_manager", lambda: manager)
    suite = tmp_path / "suite.json"
    suite.write_text(json.dumps({"tasks": [{"task": "both", "shots": 2, "name": "Both"}]}))
    found = downstream([world["knows"]], suite)
    assert found["tasks"]["Both"] == {"task": "both", "shots": 2, "metric": "acc", "averaged": True}
    result = found["models"][world["knows"]]["results"]["Both"]
    assert result["num_questions"] == sum(sizes)
    assert list(result["metrics"]) == ["acc"]
    assert result["metrics"]["acc"] > 0.6  # chance is a third
    (task,) = tasks.load_tasks(read_suite(suite), words())
    for each in task.task_dict["tasks"].values():
        each.set_fewshot_seed(seed=tasks.SEED)
        each.build_all_requests(limit=1, rank=0, world_size=1)
        assert each.instances[0].args[0].count("\n\n") == 2
    suite.write_text(json.dumps({"tasks": [{"task": "loose"}]}))
    with pytest.raises(InputError, match="The group 'loose' has no result of its own"):
        downstream([world["knows"]], suite)


def test_a_task_of_generated_text(world: dict[str, str], tmp_path: Path) -> None:
    found = downstream([world["knows"], world["random"]], write_generation(tmp_path))["models"]
    assert found[world["knows"]]["results"]["next"] == {
        "metrics": {"exact_match": 1.0},
        "stderr": {"exact_match": 0.0},
        "num_questions": 7,
    }
    assert found[world["random"]]["average"] < 0.5


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
    model, sheared, data = stories(SHARED, tmp_path)
    found = downstream([model, sheared], data, batch_size=32)["models"]
    of_source, of_sheared = (
        {task: result["metrics"] for task, result in found[name]["results"].items()} for name in (model, sheared)
    )
    assert of_source["choices_stories"]["acc"] > 0.8
    assert of_source["choices_stories"]["acc"] > of_sheared["choices_stories"]["acc"] + 0.2
    assert of_source["completion_stories"]["acc"] > of_sheared["completion_stories"]["acc"] + 0.2
    assert of_source["completion_stories"]["perplexity"] < 0.1 * of_sheared["completion_stories"]["perplexity"]
