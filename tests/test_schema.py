"""Every top-level key of a recipe, the devices it asks for, and files that are no recipes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from llmshearing.devices import check_device, parallelism, problems
from llmshearing.errors import InputError
from llmshearing.recipe import load_recipe
from llmshearing.schema import KEYS, REQUIRED
from tests.test_recipe import SMALL

WRONG = {
    "run_name": ["5", "''", "' '", "[a]"],
    "seed": ["", "abc", "-1", "1e20", "3.5", "true", "4294967296"],
    "max_seq_len": ["0", "1", "many", "2.5"],
    "tokenizer": ["5", "name"],
    "model": ["5"],
    "optimizer": ["adamw"],
    "algorithms": ["5"],
    "callbacks": ["[nan_monitor]"],
    "max_duration": ["ten", "4", "0ba", "-5ba", "1.5ba", "1ep", "1dur", "xdur", "infba", "1s", "1e99ba", "[]"],
    "eval_interval": ["", "xdur", "0dur", "1.5dur", "-1dur", "0ba", "1ep", "5"],
    "save_interval": ["", "1ep", "ba"],
    "console_log_interval": ["0.5dur", "1"],
    "global_train_batch_size": ["many", "0", "-4", "2.5", "true"],
    "device_train_microbatch_size": ["", "automatic", "0", "true"],
    "device_eval_batch_size": ["0", "many", "", ".inf"],
    "precision": ["fp64", "bf16", "5", ""],
    "device": ["tpu", "cuda", "5"],
    "fsdp_config": ["true", "[]"],
    "compile_config": ["5"],
    "save_folder": ["5", "[]"],
    "save_num_checkpoints_to_keep": ["-2", "0.5", "all"],
    "autoresume": ["yes_please", "1", ""],
    "load_path": ["5", "''"],
    "dist_timeout": ["abc", "0", "-5", ".inf", ".nan"],
    "python_log_level": ["loud", "INFO", "5"],
    "dry_run": ["8", "maybe", "[]"],
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(SMALL)
    return path


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_a_value_of_another_kind_is_named_with_what_it_must_be(recipe: Path, key: str, value: str) -> None:
    with pytest.raises(InputError, match=rf"^{key} is .*; it must be .*\.") as found:
        load_recipe(recipe, [f"{key}={value}"])
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("key", [name for name, key in KEYS.items() if key.default is not REQUIRED])
def test_every_default_is_of_its_keys_own_kind(key: str) -> None:
    default = KEYS[key].default
    assert KEYS[key].check(key, default) == default
    assert KEYS[key].doc


def test_a_microbatch_is_one_sequence_where_composer_cannot_find_its_size(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_recipe(recipe)["device_train_microbatch_size"] == "auto"
    assert load_recipe(recipe, ["fsdp_config={}"])["device_train_microbatch_size"] == 1
    given = load_recipe(recipe, ["fsdp_config={}", "device_train_microbatch_size=auto"])
    assert [
        message for message in problems(given, num_devices=8) if "works under FSDP1 alone: give a number" in message
    ]
    monkeypatch.setenv("FSDP_VERSION", "1")
    assert load_recipe(recipe, ["fsdp_config={}"])["device_train_microbatch_size"] == "auto"
    assert list(problems(given, num_devices=8)) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["device=cpu", "precision=amp_fp16"], "'amp_fp16', which needs a GPU"),
        (["compile_config={modes: default}"], "Unknown key in compile_config 'modes'. Did you mean 'mode'"),
        (["compile_config={mode: fast}"], "compile_config.mode is 'fast'; it must be one of default"),
        (["compile_config={backend: inductr}"], "Unknown compile_config.backend 'inductr'. Did you mean 'inductor'"),
        (["compile_config={fullgraph: 3}"], "compile_config.fullgraph is 3; it must be true or false"),
    ],
)
def test_what_devices_cannot_do_is_named(recipe: Path, overrides: list[str], message: str) -> None:
    assert re.search(message, "".join(problems(load_recipe(recipe, overrides), num_devices=8)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixed_precision": "half"}, "fsdp_config.mixed_precision is 'half'; it must be one of DEFAULT, PURE, FULL"),
        ({"activation_checkpointing": "some"}, "must be true or false"),
        ({"state_dict_type": "local"}, "must be one of sharded, full"),
        ({"device_mesh": 3}, "Unknown key in fsdp_config 'device_mesh'"),
    ],
)
def test_settings_of_fsdp_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parallelism(settings)


def test_a_device_that_is_not_here_is_named() -> None:
    if torch.cuda.is_available():
        check_device("gpu")
    else:
        with pytest.raises(InputError, match="device is 'gpu', but there is none here; use cpu"):
            check_device("gpu")
    check_device("cpu")
    check_device(None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: b: c", "not YAML that can be read: line 1, column 5: mapping values are not allowed here"),
        ("a:\n\tb: 1", "line 2, column 1: .* Indent with spaces"),
        ("a: \0", "not YAML"),
        ("a: 1\na: 2", "found duplicate key a"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: &x [*x]", "an alias of what it stands in"),
        ("a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
            f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcde", "bcdef", strict=True)
        ), "has more than 100,000 values"),
        ("[" * 2000, "cannot be read"),
        ("a: 1\n---\nb: 2", "another document"),
        ("- 1", "is not a mapping"),
        ("", "lacks run_name, max_seq_len"),
        ("5: 3", "Unknown key in .* '5'"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_recipe_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(InputError, match=message) as found:
        load_recipe(tmp_path / "recipe.yaml")
    assert "\n" not in str(found.value)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(InputError, match="not UTF-8 text"):
        load_recipe(tmp_path / "recipe.yaml")
