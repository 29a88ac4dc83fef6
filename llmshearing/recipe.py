"""Recipes: YAML files with ``key=value`` overrides, checked before anything is built."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llmshearing.addresses import check_addresses
from llmshearing.devices import fsdp_version
from llmshearing.errors import InputError, one_line, unknown_name
from llmshearing.fileio import refuse_address
from llmshearing.registry import COMPONENTS, LISTED
from llmshearing.schema import KEYS, REQUIRED, Mapping, unfit

_NAMED = ("model", "train_loader", "optimizer", "scheduler")
_COLLECTIONS = ("algorithms", "callbacks", "loggers")
_LARGEST = 100_000  # values in a recipe, each alias counted as what it stands for


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a recipe, apply ``key=value`` overrides, resolve interpolations, fill in defaults.

    Args:
        path: YAML file.
        overrides: dotted, e.g. ``algorithms.targeted_pruning.lr=0.5``.

    Returns:
        Plain Python containers, complete: every key of :data:`~llmshearing.schema.KEYS` is there.

    Raises:
        InputError: the file, an override or a key is wrong; names it and the nearest known key.
    """
    config = _read(path)
    for override in overrides:
        config = _override(config, override)
    try:
        recipe = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except (OmegaConfBaseException, ValueError, RecursionError) as error:
        raise InputError(f"Recipe '{path}' cannot be read: {one_line(error)}") from error
    assert isinstance(recipe, dict)
    return _check({str(key): value for key, value in recipe.items()}, path)


def _read(path: str | Path) -> DictConfig:
    refuse_address(path, "a recipe is read from a file", "Copy it there, and give the path.")
    if not Path(path).is_file():
        raise InputError(f"There is no recipe '{path}'.")
    try:
        text = Path(path).read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None and not isinstance(root, yaml.MappingNode):
            raise InputError(f"Recipe '{path}' is not a mapping of keys to values.")
        if root is not None and _size(root, {}) > _LARGEST:
            raise InputError(f"Recipe '{path}' has more than {_LARGEST:,} values, or an alias of what it stands in.")
        config = OmegaConf.load(io.StringIO(text))
    except UnicodeDecodeError as error:
        raise InputError(f"Recipe '{path}' is not UTF-8 text: {error}. Save it as UTF-8.") from error
    except yaml.YAMLError as error:
        raise InputError(f"Recipe '{path}' is not YAML that can be read: {_reason(error)}") from error
    except (OmegaConfBaseException, RecursionError) as error:
        raise InputError(f"Recipe '{path}' cannot be read: {one_line(error)}") from error
    assert isinstance(config, DictConfig)
    return config


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for, its aliases written out; too many for one that holds itself."""
    if id(node) not in known:
        known[id(node)] = _LARGEST + 1  # until it is known: what refers to it meanwhile lies within it
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        inner = 0 if isinstance(node, yaml.ScalarNode) else sum(_size(part, known) for part in parts)
        known[id(node)] = 1 + inner
    return known[id(node)]


def _reason(error: yaml.YAMLError) -> str:
    """What is wrong and where, without the excerpt that yaml draws."""
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    reason = one_line(getattr(error, "problem", None) or error)
    tab = " Indent with spaces." if "\\t" in reason else ""
    return f"{where}{reason}.{tab}"


def _override(config: DictConfig, override: str) -> DictConfig:
    """``config`` with one ``key=value`` applied."""
    key, sign, _ = override.partition("=")
    if not sign:
        raise InputError(f"'{override}' is not an override; write key=value, e.g. max_duration=100ba.")
    if not re.fullmatch(r"[^\s.\[\]{}]+(\.[^\s.\[\]{}]+)*", key):
        raise InputError(f"'{override}' has no key that a recipe could have; write key=value or section.key=value.")
    value: Any = OmegaConf.to_container(config)
    parts = key.split(".")
    for depth, part in enumerate(parts[:-1], start=1):
        value = value.get(part)
        if value is None or isinstance(value, bool) or (isinstance(value, str) and "${" in value):
            break  # nothing there yet, or what is checked once it is resolved
        if not isinstance(value, dict):
            whole = ".".join(parts[:depth])
            raise InputError(f"'{override}': {whole} is {value!r}, which has no keys; set it whole, as {whole}=...")
    try:
        given = OmegaConf.from_dotlist([override])
        if _lacks(OmegaConf.to_container(given)):  # a merge would leave what was there
            raise InputError(f"'{override}': ??? stands for a value that is missing. Give {key} one.")
        if isinstance(OmegaConf.select(config, key), ListConfig):  # which nothing but a list would merge with
            OmegaConf.update(config, key, None)
        return OmegaConf.merge(config, given)  # type: ignore[return-value]
    except yaml.YAMLError as error:
        raise InputError(f"'{override}' has a value that is not YAML: {_reason(error)}") from error
    except InputError:
        raise
    except (OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"'{override}' cannot be applied: {one_line(error)}") from error


def _lacks(value: Any) -> bool:
    """Whether a value is omegaconf's ``???`` for a missing one, or a mapping with one."""
    return value == "???" or (isinstance(value, dict) and any(map(_lacks, value.values())))


def _check(recipe: dict[str, Any], path: str | Path) -> dict[str, Any]:
    for key in recipe:
        if key not in KEYS:
            raise unknown_name(f"key in '{path}'", key, KEYS)
    missing = [name for name, key in KEYS.items() if key.default is REQUIRED and recipe.get(name) is None]
    if missing:
        raise InputError(f"Recipe '{path}' lacks {', '.join(missing)}.")
    complete = {name: key.check(name, recipe[name]) if name in recipe else key.default for name, key in KEYS.items()}
    for section in _NAMED:
        _check_name(section, complete[section], COMPONENTS[section], path)
    _check_evaluators(complete["eval_loader"], path)
    for section in _COLLECTIONS:
        for name, settings in complete[section].items():
            if name not in COMPONENTS[section]:
                raise unknown_name(f"name in {section}", name, COMPONENTS[section])
            if settings is not None and not isinstance(settings, dict):
                raise InputError(f"{section}.{name} is {settings!r}; it must be a mapping of settings; {{}} for none.")
    dataset = complete["train_loader"].get("dataset")
    if dataset is not None and not isinstance(dataset, dict):
        raise unfit("train_loader.dataset", dataset, Mapping("{local: FOLDER}"))
    if "device_train_microbatch_size" not in recipe and complete["fsdp_config"] is not None and fsdp_version() == 2:
        complete["device_train_microbatch_size"] = 1  # Composer finds one by itself under FSDP1 alone
    for key in ("eval_interval", "save_interval"):
        complete[key] = _in_batches(key, complete[key], complete["max_duration"])
    check_addresses(complete)
    return complete


def _check_name(section: str, settings: dict[str, Any], known: Iterable[str], path: str | Path) -> None:
    if "name" not in settings:
        raise InputError(f"`{section}` in '{path}' needs a `name`: one of {', '.join(known)}.")
    if str(settings["name"]) not in known:
        raise unknown_name(f"name of {section}", settings["name"], known)


def _check_evaluators(settings: dict[str, Any] | list[dict[str, Any]] | None, path: str | Path) -> None:
    """Check names and labels: a list is of evaluators of one domain each, a mapping stands for all."""
    if settings is None:
        return
    if isinstance(settings, dict):
        return _check_name("eval_loader", settings, {*COMPONENTS["eval_loader"]} - {LISTED}, path)
    labels = set()
    for place, entry in enumerate(settings):
        label = entry.get("label")
        if not isinstance(label, str) or not label:
            raise InputError(f"eval_loader[{place}].label is {label!r}; it must be a domain's name.")
        if label in labels:
            raise InputError(f"eval_loader has two evaluators with the label '{label}': give each domain one.")
        labels.add(label)
        _check_name(f"eval_loader[{place}]", entry, [LISTED], path)


def _in_batches(key: str, interval: str, max_duration: str) -> str:
    """A share of the run (``0.5dur``) in batches: Composer cannot work it out for data without an end."""
    if not interval.endswith("dur"):
        return interval
    if not max_duration.endswith("ba"):
        raise InputError(f"{key} of '{interval}' needs a max_duration in batches (ba), not '{max_duration}'.")
    return f"{max(1, round(float(interval[:-3]) * float(max_duration[:-2])))}ba"
