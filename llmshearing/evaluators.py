"""A recipe's ``eval_loader``: one evaluator per domain, from the short form or from LLM Foundry's list."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from composer.core import Evaluator
from transformers import PreTrainedTokenizerBase

from llmshearing.data.evaluation import evaluator
from llmshearing.data.preflight import check_labels
from llmshearing.errors import InputError
from llmshearing.registry import build


def build_recipe_evaluators(
    recipe: Mapping[str, Any], domains: Iterable[str], tokenizer: PreTrainedTokenizerBase | None
) -> list[Evaluator]:
    """The evaluators that a recipe describes, labelled by domain; none where it has no ``eval_loader``.

    Args:
        recipe: complete, from :func:`~llmshearing.recipe.load_recipe`.
        domains: those of the training data, which ``per_domain`` takes; a list names its own.
        tokenizer: the model's; token ids must be within its vocabulary. ``None``: not checked.

    Raises:
        InputError: a setting is wrong, a domain of a mix that moves has no evaluator, or its data does not fit.
    """
    settings, batch_size = recipe["eval_loader"], recipe["device_eval_batch_size"]
    if settings is None:
        return []
    if isinstance(settings, Mapping):
        given = {"domains": domains, "batch_size": batch_size, "tokenizer": tokenizer}
        return build("eval_loader", settings["name"], _without(settings, "name"), **given)
    evaluators = []
    for entry in settings:
        given = {"device_batch_size": batch_size, "tokenizer": tokenizer}
        try:
            loader = build("eval_loader", entry["name"], _without(entry, "name", "label"), **given)
        except InputError as error:
            raise InputError(f"Evaluator '{entry['label']}': {error}") from error
        evaluators.append(evaluator(entry["label"], loader))
    if updates_proportions(recipe):
        check_labels([each.label for each in evaluators], domains)
    return evaluators


def updates_proportions(recipe: Mapping[str, Any]) -> bool:
    """Whether the data mix moves."""
    loading = recipe["callbacks"].get("dynamic_batch_loading", {"update_type": "constant"})
    return (loading or {}).get("update_type", "doremi") != "constant"


def eval_folders(recipe: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """``local`` and ``remote`` of every part of the evaluation data, as the recipe has them.

    Where folders of a list are in one that is not there, it is named in their place.
    """
    settings = recipe["eval_loader"] or []
    if isinstance(settings, Mapping):
        return [(settings.get("local"), settings.get("remote"))]
    folders: list[tuple[Any, Any]] = []
    for local, remote in ((entry.get("local"), entry.get("remote")) for entry in settings):
        missing = isinstance(local, str) and remote is None and not Path(local).parent.is_dir()
        folder = (str(Path(local).parent) if missing else local, remote)
        folders += [folder] if folder not in folders else []
    return folders


def _without(settings: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}
