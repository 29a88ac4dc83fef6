from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmshearing.errors import InputError
from llmshearing.evaluators import build_recipe_evaluators, eval_folders
from tests.data.helpers import numbers, write_domain


@pytest.fixture
def eval_data(tmp_path: Path) -> Path:
    for number, (domain, sequences) in enumerate({"code": 5, "web": 30}.items()):
        write_domain(tmp_path / domain, number, sequences)
    return tmp_path


def recipe(eval_loader: Any) -> dict[str, Any]:
    return {"eval_loader": eval_loader, "device_eval_batch_size": 4, "callbacks": {}}


def rows(evaluator: Any) -> list[tuple[int, int]]:
    return [row for batch in evaluator.dataloader.dataloader for row in numbers(batch)]


def test_a_list_and_the_short_form_are_the_same_evaluators(eval_data: Path) -> None:
    listed = [
        {"label": domain, "name": "one_domain", "local": str(eval_data / domain), "num_workers": 0}
        for domain in ("web", "code")
    ]
    short = {"name": "per_domain", "local": str(eval_data)}
    made = [build_recipe_evaluators(recipe(form), ["web", "code"], None) for form in (listed, short)]
    for one, other in zip(*made, strict=True):
        assert one.label == other.label
        assert one.metric_names == other.metric_names == ["LanguageCrossEntropy"]
        assert rows(one) == rows(other)
    assert [len(rows(evaluator)) for evaluator in made[0]] == [30, 5]
    assert eval_folders(recipe(listed)) == [(str(eval_data / "web"), None), (str(eval_data / "code"), None)]
    absent = [{"label": d, "name": "one_domain", "local": f"no/eval/{d}"} for d in ("a", "b")]
    assert eval_folders(recipe(absent)) == [("no/eval", None)]
    assert eval_folders(recipe(short)) == [(str(eval_data), None)]


def test_a_label_need_not_be_its_folder_nor_a_domain(eval_data: Path) -> None:
    (evaluator,) = build_recipe_evaluators(
        recipe([{"label": "held out", "name": "one_domain", "local": str(eval_data / "code")}]), ["web"], None
    )
    assert (evaluator.label, len(rows(evaluator))) == ("held out", 5)


def test_none_is_none() -> None:
    assert build_recipe_evaluators(recipe(None), ["web"], None) == eval_folders(recipe(None)) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"local": "nowhere"}, r"Evaluator 'web': .*'nowhere'"),
        ({"local": "nowhere", "seq_len": 0}, "Evaluator 'web': .*seq_len.* 0"),
        ({"batch_size": 4}, "Evaluator 'web': .*batch_size"),
    ],
)
def test_the_evaluator_that_is_wrong_is_named(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        build_recipe_evaluators(recipe([{"label": "web", "name": "one_domain", **wrong}]), ["web"], None)
