"""Questions made of held-out text and of files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llmshearing.downstream.local import choices_of, completions_of, rows_of_data, rows_of_file
from llmshearing.downstream.suites import Entry
from llmshearing.errors import InputError
from tests.downstream.helpers import words, write_questions
from tests.repeats import LENGTH, repeating, write


def test_choices_are_the_true_continuation_and_three_others_at_changing_places() -> None:
    ids = torch.from_numpy(repeating(8, seed=0))
    rows = choices_of(ids, words())
    assert [row["answer"] for row in rows] == [0, 1, 2, 3, 0, 1, 2, 3]
    for row, sequence in zip(rows, ids[:, 0].tolist(), strict=True):
        assert row["context"] == " ".join([f"w{sequence}"] * (LENGTH // 2))
        assert row["choices"][row["answer"]] == f" w{sequence}" * (LENGTH // 4)
        assert len(set(row["choices"])) == 4


def test_a_completion_is_the_last_whole_word() -> None:
    (row,) = completions_of(torch.arange(10, 26).unsqueeze(0), words())
    assert row["context"] == " ".join(f"w{number}" for number in range(10, 20))
    assert row["completion"] == " w20"  # w21 may be half a word
    assert completions_of(torch.full((1, 2), 5), words()) == []


def test_data_of_another_vocabulary_and_too_little_of_it_are_refused(tmp_path: Path) -> None:
    data = write(tmp_path / "data/eval/few", repeating(3, seed=0)).parents[1]
    entry = Entry("choices", data=str(data))
    with pytest.raises(InputError, match="'few' of '.*' gives 3 sequences of 24 tokens; questions need 4"):
        rows_of_data(entry, words())
    tokenizer = {"name": "other", "vocab_size": 32000}
    (data / "manifest.json").write_text(json.dumps({"tokenizer": tokenizer}))
    with pytest.raises(
        InputError, match="prepared with a tokenizer of 32,000 tokens .'other'., but that of '.*' has 96"
    ):
        rows_of_data(entry, words())
    beyond = write(tmp_path / "beyond/eval/one", repeating(8, seed=0) + 60).parents[1]
    with pytest.raises(InputError, match="96"):
        rows_of_data(Entry("choices", data=str(beyond)), words())
    with pytest.raises(InputError, match="Unknown domain of '.*' 'onne'. Did you mean 'one'"):
        rows_of_data(Entry("choices", data=str(beyond), domains=("onne",)), words())


def test_files_are_json_lists_or_lines(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    rows = write_questions(path)
    assert rows_of_file(str(path), "choices") == rows
    (tmp_path / "list.json").write_text(json.dumps(rows))
    assert rows_of_file(str(tmp_path / "list.json"), "choices") == rows


def test_lines_of_a_file_end_at_newlines_alone(tmp_path: Path) -> None:
    rows = [{"context": "a\u2028b\u2029c\x85d", "completion": "x\u2028y"}, {"context": "e", "completion": "f"}]
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)  # which JSON allows
    (tmp_path / "questions.jsonl").write_bytes(text.encode())
    assert rows_of_file(str(tmp_path / "questions.jsonl"), "completion") == rows


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        ("", "choices", "holds no question"),
        ("{", "choices", "neither a JSON list nor JSON lines"),
        ("[3]", "choices", "Question 1 of .* it is 3; it must be a mapping with context, choices, answer"),
        ('{"context": "a"}', "completion", "Question 1 of .*: it has no 'completion'"),
        ('{"context": " ", "completion": "b"}', "completion", "'context' is ' '; it must be text"),
        ('{"context": "a", "choices": ["b"], "answer": 0}', "choices", "a list of two texts or more"),
        ('{"context": "a", "choices": ["b", "c"], "answer": 2}', "choices", "from 0 to 1"),
        ('{"context": "a", "choices": ["b", "c"], "answer": true}', "choices", "'answer' is True"),
    ],
)
def test_questions_of_another_form_are_refused(tmp_path: Path, content: str, kind: str, message: str) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        rows_of_file(str(path), kind)
