"""Recipes: YAML files with ``key=value`` overrides, checked before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llmshearing.errors import InputError, unknown_name
from llmshearing.registry import COMPONENTS

_REQUIRED = object()

# Every top-level key with its default. Sections (mappings) are checked where they are built.
KEYS: dict[str, Any] = {
    "variables": {},  # values that the rest of the recipe refers to as ${variables.NAME}
    "run_name": _REQUIRED,
    "seed": 17,
    "max_seq_len": _REQUIRED,
    "tokenizer": _REQUIRED,  # {name: folder or hub id}
    "model": _REQUIRED,  # {name: composer_llama, pretrained | config, ...}
    "train_loader": _REQUIRED,  # {name: dynamic_streaming, dataset: {...}, num_workers, ...}
    "eval_loader": None,  # {name: per_domain, local: prepared eval folder, ...}; one evaluator per domain
    "optimizer": _REQUIRED,  # {name: ..., lr, ...}
    "scheduler": _REQUIRED,  # {name: ..., t_warmup, alpha_f, ...}
    "algorithms": {},  # {name: {settings}}
    "callbacks": {},
    "loggers": {},
    "max_duration": _REQUIRED,
    "eval_interval": "1dur",
    "global_train_batch_size": _REQUIRED,  # sequences per optimizer step, over all devices
    "device_train_microbatch_size": "auto",
    "device_eval_batch_size": 8,
    "precision": "amp_bf16",
    "fsdp_config": None,
    "compile_config": None,
    "save_folder": _REQUIRED,  # RUN/checkpoints; RUN also gets recipe.yaml and metrics.jsonl
    "save_interval": "1dur",
    "save_num_checkpoints_to_keep": -1,
    "save_overwrite": False,
    "load_path": None,
    "load_weights_only": False,
    "autoresume": False,
    "device": None,
    "dist_timeout": 600.0,
    "progress_bar": True,
    "log_to_console": False,
    "console_log_interval": "10ba",
    "python_log_level": "info",
    "dry_run": False,  # true, or {num_devices, device_tflops}: check and estimate, see llmshearing.dry_run
}
_NAMED = ("model", "train_loader", "eval_loader", "optimizer", "scheduler")
_COLLECTIONS = ("algorithms", "callbacks", "loggers")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a recipe, apply ``key=value`` overrides, resolve interpolations, fill in defaults.

    Args:
        path: YAML file.
        overrides: dotted, e.g. ``algorithms.targeted_pruning.lr=0.5``.

    Returns:
        Plain Python containers, complete: every key of :data:`KEYS` is there.

    Raises:
        InputError: the file, an override or a key is wrong; names it and the nearest known key.
    """
    if not Path(path).is_file():
        raise InputError(f"There is no recipe '{path}'.")
    for override in overrides:
        if "=" not in override:
            raise InputError(f"'{override}' is not an override; write key=value, e.g. max_duration=100ba.")
    try:
        config = OmegaConf.load(path)
        if not isinstance(config, DictConfig):
            raise InputError(f"Recipe '{path}' is not a mapping of keys to values.")
        recipe = OmegaConf.to_container(
            OmegaConf.merge(config, OmegaConf.from_dotlist(list(overrides))), resolve=True, throw_on_missing=True
        )
    except (OmegaConfBaseException, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"Recipe '{path}' cannot be read: {error}") from error
    assert isinstance(recipe, dict)
    return _check({str(key): value for key, value in recipe.items()}, path)


def _check(recipe: dict[str, Any], path: str | Path) -> dict[str, Any]:
    for key in recipe:
        if key not in KEYS:
            raise unknown_name(f"key in '{path}'", key, KEYS)
    missing = [key for key, default in KEYS.items() if default is _REQUIRED and recipe.get(key) is None]
    if missing:
        raise InputError(f"Recipe '{path}' lacks {', '.join(missing)}.")
    complete = {key: recipe[key] if recipe.get(key) is not None else default for key, default in KEYS.items()}
    for section in _NAMED:
        settings = complete[section]
        if settings is None:
            continue
        if not isinstance(settings, dict) or "name" not in settings:
            raise InputError(f"`{section}` in '{path}' needs a `name`: one of {', '.join(COMPONENTS[section])}.")
        if settings["name"] not in COMPONENTS[section]:
            raise unknown_name(f"name of {section}", settings["name"], COMPONENTS[section])
    for section in _COLLECTIONS:
        for name in complete[section]:
            if name not in COMPONENTS[section]:
                raise unknown_name(f"name in {section}", name, COMPONENTS[section])
    for key in ("eval_interval", "save_interval"):
        complete[key] = _in_batches(str(complete[key]), str(complete["max_duration"]))
    return complete


def _in_batches(interval: str, max_duration: str) -> str:
    """A share of the run (``0.5dur``) in batches: Composer cannot work it out for data without an end."""
    if not interval.endswith("dur"):
        return interval
    if not max_duration.endswith("ba"):
        raise InputError(f"An interval of '{interval}' needs a max_duration in batches, not '{max_duration}'.")
    return f"{max(1, round(float(interval[:-3]) * int(max_duration[:-2])))}ba"
