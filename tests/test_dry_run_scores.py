"""A dry run and the scores by which units are chosen."""

from __future__ import annotations

from pathlib import Path

from llmshearing.pruning.scoring import score
from tests.dry_runs import recipe_of, run
from tests.models import make_model, token_ids

BY_SCORES = ["algorithms.targeted_pruning.selection=scores", "algorithms.targeted_pruning.warmup=null"]


def test_scores_that_are_not_here_are_named() -> None:
    _, findings = run(recipe_of("prune", "llama2-7b-to-2.7b", *BY_SCORES, "algorithms.targeted_pruning.scores=nowhere"))
    assert "scores 'nowhere': see python -m llmshearing.score" in findings.absent
    assert findings.problems == []


def test_scores_of_another_shape_are_a_contradiction(tmp_path: Path) -> None:
    score(make_model("llama2"), [token_ids()]).save(tmp_path / "scores")
    path = f"algorithms.targeted_pruning.scores={tmp_path / 'scores'}"
    _, findings = run(recipe_of("prune", "llama2-7b-to-2.7b", *BY_SCORES, path))
    assert any(f"The scores in '{tmp_path / 'scores'}' are of a model of" in problem for problem in findings.problems)


def test_a_selection_by_scores_without_them_is_a_contradiction() -> None:
    _, findings = run(recipe_of("prune", "llama2-7b-to-2.7b", *BY_SCORES))
    assert any("selection is 'scores' and scores is None" in problem for problem in findings.problems)
