"""The support matrix is made from the table, and the method card has it as it is."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM

from llmshearing.architecture.families import FAMILIES
from llmshearing.architecture.support import recipes_by_family, support_matrix
from tests.models import FAMILIES as TESTED

ROOT = Path(__file__).parents[2]


def test_the_method_card_has_the_matrix_of_today() -> None:
    matrix = support_matrix(recipes_by_family(ROOT / "yamls/prune"))
    assert matrix in (ROOT / "llmshearing/pruning/README.md").read_text()


def test_every_recipe_is_in_it() -> None:
    found = recipes_by_family(ROOT / "yamls/prune")
    recipes = {path.stem for path in (ROOT / "yamls/prune").glob("*.yaml")}
    assert {name for names in found.values() for name in names} == recipes
    assert found.keys() <= FAMILIES.keys()


def test_every_family_is_tested_tied_and_untied_and_named_as_transformers_does() -> None:
    tied_of_family: dict[str, set[bool]] = {}
    for name, (model_type, _) in TESTED.items():
        tied_of_family.setdefault(model_type, set()).add("tied" in name)
    assert tied_of_family.keys() == FAMILIES.keys()
    assert all(tied == {True, False} for tied in tied_of_family.values())
    for model_type, family in FAMILIES.items():
        config = AutoConfig.for_model(model_type)
        assert AutoModelForCausalLM._model_mapping[type(config)].__name__ == family.architecture
