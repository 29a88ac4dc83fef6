from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from llmshearing.errors import InputError
from llmshearing.recipe import load_recipe
from llmshearing.registry import COMPONENTS, build, resolve
from llmshearing.schema import KEYS
from tests.conftest import REPOSITORY

RECIPES = sorted((REPOSITORY / "yamls").rglob("*.yaml"))
SMALL = """
variables: {run: runs/test}
run_name: test
max_seq_len: 32
tokenizer: {name: somewhere}
model: {name: composer_llama, pretrained: somewhere}
train_loader: {name: dynamic_streaming, dataset: {local: data}}
optimizer: {name: decoupled_adamw, lr: 1.0e-3}
scheduler: {name: cosine_with_warmup, t_warmup: 2ba}
algorithms: {gradient_clipping: {clipping_type: norm, clipping_threshold: 1.0}}
max_duration: 4ba
global_train_batch_size: 4
save_folder: ${variables.run}/checkpoints
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(SMALL)
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_shipped_recipe_is_complete_and_known(path: Path) -> None:
    loaded = load_recipe(path)
    assert loaded.keys() == KEYS.keys()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_shipped_recipe_says_what_it_is_and_how_to_run_it(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# ")
    assert f"composer -m llmshearing.train {path.relative_to(REPOSITORY)}" in text or "fsdp_config:" in text


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_key_of_a_shipped_recipe_has_a_comment(path: Path) -> None:
    lines = path.read_text().splitlines()
    commented, within = 0, (0, "")
    for line in lines:
        if line.startswith("  - {label: "):
            continue  # one of a list, of which the key above it says what its entries are
        if (match := re.match(r"( *)([\w.]+):", line)) is None:
            assert not line.strip() or line.lstrip().startswith("#"), line
            continue
        depth, key = len(match[1]), match[2]
        if depth > within[0] and within[1] in ("proportions", "reference_losses"):
            continue  # their keys are domains
        within = (depth, key)
        assert re.search(r" # \w", line), line
        commented += 1
    assert commented > 50


def test_overrides_and_interpolations_and_defaults(recipe: Path) -> None:
    loaded = load_recipe(recipe, ["variables.run=elsewhere", "optimizer.lr=0.5", "seed=3"])
    assert loaded["save_folder"] == "elsewhere/checkpoints"
    assert loaded["optimizer"]["lr"] == 0.5
    assert loaded["seed"] == 3
    assert loaded["autoresume"] is False


def test_intervals_given_as_a_share_become_batches(recipe: Path) -> None:
    loaded = load_recipe(recipe, ["max_duration=200ba", "eval_interval=0.25dur"])
    assert (loaded["eval_interval"], loaded["save_interval"]) == ("50ba", "200ba")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["max_durations=4ba"], "Unknown key in .* 'max_durations'. Did you mean 'max_duration'"),
        (["model.name=composer_lama"], "Unknown name of model 'composer_lama'. Did you mean 'composer_llama'"),
        (["callbacks.speed_monitr={}"], "Did you mean 'speed_monitor'"),
        (["seed"], "'seed' is not an override; write key=value"),
        (["run_name=null"], "lacks run_name"),
        (["model=null"], "lacks model"),
        (["save_folder=${variables.nowhere}"], "cannot be read.*nowhere"),
        (["tokenizer=[1]"], r"'tokenizer=\[1\]' cannot be applied"),
        (["algorithms=[gradient_clipping]"], "cannot be applied: Cannot merge incompatible"),
        (["model.name=[1]"], "Unknown name of model"),
        (
            ["optimizer.betas=[0.9, 0.95]", "optimizer.betas.0=1"],
            r"optimizer.betas is \[0.9, 0.95\], which has no keys",
        ),
        (["optimizer.lr.x=1"], "optimizer.lr is 0.001, which has no keys; set it whole"),
        (["optimizer.betas=[1,2"], "has a value that is not YAML: line 2, column 1"),
        (["seed=!!python/object/apply:os.getcwd []"], "not YAML: line 1, column 1: could not determine a constructor"),
        (["seed=${"], "cannot be applied"),
        (["variables.a=${variables.a}"], "cannot be read: Recursive interpolation"),
        (["a..b=1"], "'a..b=1' has no key that a recipe could have"),
        (["=1"], "has no key that a recipe could have"),
        (["a[0]=1"], "has no key that a recipe could have"),
        (["train_loader.dataset=5"], "train_loader.dataset is 5; it must be a mapping"),
        (["callbacks.speed_monitor=5"], "callbacks.speed_monitor is 5; it must be a mapping of settings"),
        (["max_duration=10sp", "eval_interval=0.5dur"], "eval_interval of '0.5dur' needs a max_duration in batches"),
    ],
)
def test_mistakes_are_named(recipe: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe(recipe, overrides)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There is no recipe '.*nothing.yaml'"):
        load_recipe(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in COMPONENTS.items() for name in names])
def test_every_registered_name_stands_for_something(kind: str, name: str) -> None:
    assert callable(resolve(kind, name))


def test_unknown_and_missing_arguments_are_named() -> None:
    with pytest.raises(InputError, match="Unknown key in algorithms.targeted_pruning 'warmpu'. Did you mean 'warmup'"):
        build("algorithms", "targeted_pruning", {"target": {"hidden_size": 8}, "warmpu": "3ba"})
    with pytest.raises(InputError, match="algorithms.targeted_pruning needs target"):
        build("algorithms", "targeted_pruning", {})


@pytest.mark.parametrize(
    ("kind", "name", "settings", "message"),
    [
        ("optimizer", "decoupled_adamw", {"lr": -1}, "optimizer.lr is -1; it must be a number from 0"),
        ("optimizer", "decoupled_adamw", {"lr": "fast"}, "optimizer.lr is 'fast'; it must be a number"),
        (
            "optimizer",
            "adamw",
            {"betas": [2, 3]},
            r"optimizer.betas is \[2, 3\]; it must be a list of 2 numbers",
        ),
        ("optimizer", "adamw", {"betas": 0.9}, "optimizer.betas is 0.9; it must be a list of 2"),
        ("optimizer", "adamw", {"lr": None}, "optimizer.lr is empty; give it a value, or leave it out"),
        (
            "scheduler",
            "cosine_with_warmup",
            {"t_warmup": "ten"},
            "scheduler.t_warmup is 'ten'; it must be a time",
        ),
        ("scheduler", "cosine_with_warmup", {"t_warmup": "1ba", "alpha_f": None}, "scheduler.alpha_f is empty"),
        (
            "algorithms",
            "gradient_clipping",
            {"clipping_type": "norms", "clipping_threshold": 1.0},
            "gradient_clipping.clipping_type is 'norms'; it must be one of norm, value, adaptive. Did you mean 'norm'",
        ),
        (
            "algorithms",
            "gradient_clipping",
            {"clipping_type": "norm", "clipping_threshold": "x"},
            "algorithms.gradient_clipping.clipping_threshold is 'x'; it must be a number",
        ),
        ("callbacks", "nan_monitor", {"every": 3}, "Unknown key in callbacks.nan_monitor 'every'"),
        ("callbacks", "speed_monitor", {"window_size": 0}, "window_size is 0; it must be a whole number from 1"),
    ],
)
def test_settings_of_composers_components_are_checked(
    kind: str, name: str, settings: dict[str, Any], message: str
) -> None:
    given = {"params": [torch.nn.Parameter(torch.ones(1))]} if kind == "optimizer" else {}
    with pytest.raises(InputError, match=message):
        build(kind, name, settings, **given)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_without_its_package_is_named(name: str) -> None:
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed here")
    with pytest.raises(InputError, match=f"loggers.{name} needs a package that is not installed: .*{name}"):
        build("loggers", name, {})


def test_what_a_constructor_refuses_names_its_section() -> None:
    with pytest.raises(InputError, match=r"^optimizer.adamw: .*parameter.* It was given lr=0.1\.$"):
        build("optimizer", "adamw", {"lr": 0.1}, params=[])
