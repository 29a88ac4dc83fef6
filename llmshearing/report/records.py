"""Reading the JSON that shearing and the demo leave, so that a damaged file is named and not drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmshearing.downstream.table import table_of
from llmshearing.errors import InputError
from llmshearing.fileio import read_json

ENVIRONMENTS = "environment.json"  # beside a run's metrics: what it ran on, see llmshearing/environment.py
COMPUTE = "compute.json"  # beside a run's metrics: what a token of it cost, see llmshearing/compute.py
_DIMENSIONS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
_LARGEST = 1 << 20  # of a dimension; a model has fewer units
#: How deep the numbers of a summary lie, by key.
_SUMMARY = {"eval_loss": 2, "proportions": 2, "parameters": 1, "tokens": 1, "wall_s": 1, "quality": 2, "speed": 2}


def read_summary(path: Path) -> dict[str, Any]:
    """The ``summary.json`` of a run.

    Raises:
        InputError: it has not the form of one.
    """
    summary = read_json(path)
    if not isinstance(summary, dict):
        raise _damaged(path, "it is no mapping")
    for key, depth in _SUMMARY.items():
        if not _are_numbers(summary.get(key, {}), depth):
            raise _damaged(path, f"'{key}' is {summary[key]!r}")
    if not _are_texts(summary.get("samples", {})):
        raise _damaged(path, f"'samples' is {summary['samples']!r}")
    losses = summary.get("eval_loss", {})
    for model in ("final", "control"):
        if model in losses and "mean" not in losses[model]:
            raise _damaged(path, f"'eval_loss' of '{model}' lacks 'mean'")
    return summary


def read_downstream(path: Path) -> dict[str, Any]:
    """The results that ``python -m llmshearing.downstream --out`` wrote.

    Raises:
        InputError: they have another form.
    """
    found = read_json(path)
    try:
        table_of(found)
        str(found["suite"]), str(found["lm_eval"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, repr(error)) from error
    return dict(found)


def read_environments(path: Path) -> list[dict[str, Any]]:
    """What :func:`llmshearing.environment.record` wrote, the first first.

    Raises:
        InputError: it has another form.
    """
    found = read_json(path)
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise InputError(f"'{path}' is not a list of environments. Remove it: the next run writes it again.")
    return found


def read_compute(path: Path) -> dict[str, float]:
    """What :func:`llmshearing.compute.write_training_compute` wrote.

    Raises:
        InputError: it has another form.
    """
    found = read_json(path)
    keys = {"model", "teacher", "evaluation", "scores", "num_parameters"}
    if not (isinstance(found, dict) and found.keys() >= keys and _are_numbers(found, 1)):
        raise InputError(f"'{path}' does not say what a token cost. Remove it: the next run writes it again.")
    return found


def read_shearing(path: Path) -> dict[str, Any]:
    """The ``shearing.json`` of a sheared model.

    Raises:
        InputError: it has not the form of one.
    """
    shearing = read_json(path)
    try:
        source, target, kept = shearing["source"], shearing["target"], shearing["kept"]
        for shape in (source, target):
            for name in _DIMENSIONS:
                if type(shape[name]) is not int or not 0 < shape[name] <= _LARGEST:
                    raise _damaged(path, f"'{name}' is {shape[name]!r}")
        if source["num_attention_heads"] % source["num_key_value_heads"]:
            raise _damaged(path, "heads do not divide into groups")
        units = [(kept["layers"], "num_hidden_layers"), (kept["hidden_size"], "hidden_size")]
        for entry in kept["per_layer"]:
            units.append(([entry["layer"]], "num_hidden_layers"))
            units += [(entry[name], name) for name in ("intermediate_size", "num_attention_heads")]
        for indices, name in units:
            if not isinstance(indices, list) or not all(
                type(index) is int and 0 <= index < source[name] for index in indices
            ):
                raise _damaged(path, f"kept units of '{name}' are not among {source[name]}")
    except (KeyError, TypeError) as error:
        raise _damaged(path, repr(error)) from error
    return shearing


def _are_numbers(value: Any, depth: int) -> bool:
    if depth == 0:
        return isinstance(value, int | float) and -1e100 < value < 1e100  # nan is not
    return isinstance(value, dict) and all(_are_numbers(entry, depth - 1) for entry in value.values())


def _are_texts(value: Any) -> bool:
    """Whether it is what models wrote, by prompt and model."""
    return isinstance(value, dict) and all(
        isinstance(texts, dict) and texts and all(isinstance(text, str) for text in texts.values())
        for texts in value.values()
    )


def _damaged(path: Path, what: str) -> InputError:
    return InputError(f"'{path}' is damaged: {what}. Restore it, or move it away to draw the rest.")
