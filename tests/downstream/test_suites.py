"""Suites: the named ones, and files."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmshearing.downstream.published import PUBLISHED
from llmshearing.downstream.suites import SUITES, Entry, read_suite
from llmshearing.downstream.table import markdown, published_rows, table_of
from llmshearing.downstream.tasks import _manager
from llmshearing.errors import InputError

pytest.importorskip("lm_eval", reason="no lm-eval: pip install 'llmshearing[eval]'")


def test_the_papers_suite_has_its_shots_and_every_published_column() -> None:
    shots = {entry.name: entry.shots for entry in SUITES["paper"].entries}
    few = {"ARC-C": 25, "HellaSwag": 10, "BoolQ": 32, "NQ": 32, "MMLU": 5}
    assert {name: number for name, number in shots.items() if number} == few
    averaged = [entry.name for entry in SUITES["paper"].entries if entry.averaged]
    assert len(averaged) == 11
    assert all(list(row.scores) == averaged for row in PUBLISHED)
    assert set(SUITES["quick"].entries) < set(SUITES["paper"].entries)


def test_published_averages_are_those_of_the_published_columns() -> None:
    """A figure that was copied wrongly would move the mean of its row."""
    for row in PUBLISHED:
        assert sum(row.scores.values()) / 11 == pytest.approx(row.average, abs=0.1), row.model


def test_lm_eval_has_every_task_of_the_named_suites() -> None:
    assert {entry.task for entry in SUITES["paper"].entries} <= _manager().task_index.keys()


def test_a_file_names_tasks_files_and_data(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        """
name: own
tasks:
  - {task: arc_easy, shots: 3, metric: acc_norm}
  - {file: questions.jsonl, kind: completion, name: cloze, averaged: false}
  - {data: data/mine, domains: [code], sequences: 50}
"""
    )
    suite = read_suite(path)
    assert suite.name == "own"
    assert suite.entries == (
        Entry("arc_easy", task="arc_easy", shots=3, metric="acc_norm"),
        Entry("cloze", file="questions.jsonl", kind="completion", averaged=False),
        Entry("choices", data="data/mine", domains=("code",), sequences=50),
    )
    path.write_text('{"tasks": [{"task": "lambada_openai", "metric": "perplexity"}]}')
    (entry,) = read_suite(path).entries
    assert not entry.averaged


def test_a_folder_is_prepared_data_with_both_kinds(tmp_path: Path) -> None:
    entries = read_suite(tmp_path).entries
    assert [(entry.data, entry.kind) for entry in entries] == [
        (str(tmp_path), kind) for kind in ("choices", "completion")
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("tasks: []", "it must have a list of tasks"),
        ("[", "neither YAML nor JSON"),
        ("tasks: [arc_easy]", r"tasks\[0\] of '.*' is 'arc_easy'; it must have one of the keys task, file and data"),
        ("tasks: [{task: a, data: b}]", "one of the keys"),
        ("tasks: [{task: a, shot: 3}]", "Unknown key in tasks.*'shot'. Did you mean 'shots'"),
        ("tasks: [{task: a, shots: -1}]", "shots is -1; it must be a whole number from 0"),
        ("tasks: [{task: a, kind: choices}]", "Unknown key .*beside 'task', 'kind'"),
        ("tasks: [{file: a, kind: choice}]", "Unknown kind .* 'choice'. Did you mean 'choices'"),
        ("tasks: [{data: a, domains: code}]", "domains is 'code'; it must be a list"),
        ("tasks: [{task: a, metric: perplexity, averaged: true}]", "'perplexity' is no share"),
        ("task: [{task: a}]", "it must have a list of tasks"),
        ("{tasks: [{task: a}], seed: 3}", "Unknown key in .* 'seed'"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_suite(path)


def found(*names: str, limit: int | None = None) -> dict:
    tasks = {
        entry.name: {"task": entry.task, "shots": entry.shots, "metric": entry.metric, "averaged": entry.averaged}
        for entry in SUITES["paper"].entries
        if entry.name in names
    }
    metrics = {name: {"metrics": {task["metric"]: 0.5}} for name, task in tasks.items()}
    model = {"num_parameters": 1_345_000_000, "tokens": 50e9, "results": metrics, "average": 0.5}
    return {"suite": "s", "lm_eval": "0", "dtype": "float32", "limit": limit, "tasks": tasks, "models": {"m": model}}


def test_public_models_stand_below_with_averages_over_the_tasks_that_are_shown() -> None:
    header, rows, notes = table_of(found("SciQ", "ARC-C"))
    assert header == ["model", "parameters", "tokens", "SciQ", "ARC-C (25, acc_norm)", "average"]
    assert rows[0] == ["m", "1.34B", "50B", "50.0", "50.0", "50.0"]
    assert ["Sheared-LLaMA-1.3B *", "1.3B", "50B", "87.3", "33.5", "60.4"] in rows
    assert "arXiv 2310.06694" in notes[0]
    text = markdown(found("SciQ", "ARC-C"))
    assert text.count("\n| ") == len(rows) + 1
    assert len({len(line) for line in text.splitlines() if line.startswith("|")}) == 1


def test_what_is_no_task_of_the_paper_has_no_published_figures() -> None:
    other = found("SciQ")
    other["tasks"]["SciQ"]["task"] = "another"
    assert published_rows(other["tasks"]) == {}
    assert len(table_of(found("SciQ", limit=10))[1]) == 1  # a part of the questions is not comparable
    other = found("SciQ", "PIQA")
    other["tasks"]["PIQA"]["shots"] = 5
    assert all(row["average"] is None for row in published_rows(other["tasks"]).values())
