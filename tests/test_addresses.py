"""Every key and argument that takes a path takes an address or refuses it: none becomes a folder ``s3:``."""

from __future__ import annotations

import re
import sys
from contextlib import nullcontext
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from llmshearing import storage
from llmshearing.addresses import TAKE, check_addresses
from llmshearing.copies import name_of, parent_of
from llmshearing.errors import InputError
from llmshearing.recipe import load_recipe
from llmshearing.recipe_keys import page
from llmshearing.run_place import RunPlace
from llmshearing.uploader import superseded
from tests.conftest import REPOSITORY

ADDRESS = "s3://bucket/some/where"
PROSE = (REPOSITORY / "docs" / "object_stores.md").read_text(encoding="utf-8")
# What each command is given an address for -> how it refuses it; those that take one have tests of their own.
COMMANDS = [
    ["train", ADDRESS],
    ["convert", "rotate", ADDRESS, "out", "--data", "d"],
    ["score", ADDRESS, "scores", "--data", "d"],
    ["score", "model", ADDRESS, "--data", "d"],
    ["choose_shape", ADDRESS, "--parameters", "1M"],
    ["choose_shape", "model", "--parameters", "1M", "--json", ADDRESS],
    ["new_recipe", ADDRESS, "--data", "d", "--parameters", "1M", "--tokens", "1M", "--out", "my"],
    ["new_recipe", "model", "--data", "d", "--parameters", "1M", "--tokens", "1M", "--out", ADDRESS],
    ["new_recipe", "model", "--data", "d", "--parameters", "1M", "--tokens", "1M", "--out", "my", "--run", ADDRESS],
    ["downstream", ADDRESS, "--suite", "quick"],
    ["downstream", "model", "--suite", "quick", "--out", ADDRESS],
    ["inference_speed", ADDRESS, "--generate", "2", "4"],
    ["inference_speed", "model", "--generate", "2", "4", "--out", ADDRESS],
    ["text_quality", "model", "--source", ADDRESS, "--data", "d"],
    ["text_quality", "model", "--source", "model", "--data", "d", "--out", ADDRESS],
    ["answers", "model", "--prompts", "p", "--out", ADDRESS],
    ["answers", "model", "--prompts", ADDRESS, "--out", "out"],
    ["tune", "model", ADDRESS, "--out", "out"],
    ["tune", "model", "chats", "--out", ADDRESS],
]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words).replace(ADDRESS, "ADDRESS"))
def test_a_command_refuses_an_address_where_it_takes_none(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    name = f"llmshearing.{words[0]}"
    main = import_module(f"{name}.__main__" if find_spec(name).submodule_search_locations else name).main
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stopped:
        main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.count("\n") == 1
    assert f"'{ADDRESS}' is an address" in error
    assert not list(tmp_path.iterdir())


def keys_of_paths() -> list[str]:
    """Every key of a recipe that takes a path, by its documentation."""
    found, section = ["save_folder", "load_path", "tokenizer.name"], ""
    for line in page().splitlines():
        if line.startswith("## "):
            section = line.strip("# ").replace("`", "").replace(": ", ".")
        match = re.match(r"\| `(\w+)` \| .* \| (.*) \|$", line)
        if (
            match
            and section not in ("", "Names")
            and re.search(r"\b([Pp]ath|[Ff]older|file|hub id|fetch shards)\b", match[2])
        ):
            found.append(f"{section}.{match[1]}")
    in_recipes = (
        (r"^(model|train_loader|eval_loader)\.(composer_llama|dynamic_streaming|per_domain)\.", r"\1."),
        (r"^eval_loader\.one_domain\.", "eval_loader.0."),
    )
    for pattern, by in in_recipes:
        found = [re.sub(pattern, by, key) for key in found]
    return sorted(set(found))


@pytest.mark.parametrize("key", keys_of_paths())
def test_every_key_that_takes_a_path_takes_or_refuses_an_address(key: str) -> None:
    assert f"`{key.replace('.0.', '.*.')}`" in PROSE
    section, *rest = key.split(".")
    recipe: Any = ADDRESS
    for part in reversed([section, *rest]):
        recipe = [recipe] if part == "0" else {part: recipe}
    taken = any(re.fullmatch(known.replace(".", r"\.").replace("*", ".*"), key) for known in TAKE)
    message = f"{key} is '{ADDRESS}', an address, but it has to be on a disk"
    with nullcontext() if taken else pytest.raises(InputError, match=re.escape(message)):
        check_addresses(recipe)


def test_the_keys_that_take_addresses_are_among_those_of_paths() -> None:
    keys = {key.replace(".0.", ".*.") for key in keys_of_paths()}
    assert {key for key in TAKE if key != "train_loader.dataset.remote.*"} <= keys
    with pytest.raises(InputError, match=r"train_loader.dataset.remote.web: 'http://x/y' begins with http://"):
        check_addresses({"train_loader": {"dataset": {"remote": {"web": "http://x/y"}}}})
    check_addresses({"loggers": {"wandb": {"settings": "https://somewhere"}}})


@pytest.mark.parametrize("key", ["model.pretrained", "model.config", "tokenizer.name", "train_loader.dataset.local",
    "algorithms.source_distillation.teacher"])  # fmt: skip
def test_a_recipe_refuses_an_address_where_it_takes_none(key: str) -> None:
    with pytest.raises(InputError, match=f"{key} is '{ADDRESS}', an address, but it has to be on a disk"):
        load_recipe(REPOSITORY / "yamls" / "debug" / "prune.yaml", [f"{key}={ADDRESS}"])


def test_only_what_is_older_than_the_newest_whole_checkpoints_is_superseded() -> None:
    files = ["ep0-ba2-rank0.pt", "ep0-ba4-rank0.pt", "ep0-ba10-rank0.pt", "latest-rank0.pt.symlink", "other"]
    assert superseded(files, 1) == ["ep0-ba4-rank0.pt", "ep0-ba2-rank0.pt"]
    assert superseded(files, 3) == superseded(files, 9) == []
    assert len(superseded(files, 0)) == 3
    # Of another run, which this one overwrites: they go first, however far they were.
    assert superseded(files, 1, {"ep0-ba10-rank0.pt", "ep0-ba4-rank0.pt"}) == ["ep0-ba10-rank0.pt", "ep0-ba4-rank0.pt"]
    parts = {2: 3, 4: 3, 6: 2, 8: 3}  # of ep0-ba6 a part is missing, and ep0-ba8 has no .metadata yet
    sharded = [f"ep0-ba{batch}/__{part}_0.distcp" for batch, count in parts.items() for part in range(count)]
    sharded += [f"ep0-ba{batch}/.metadata" for batch in (2, 4, 6)]
    assert superseded(sharded, 1) == ["ep0-ba2"]
    assert superseded(sharded, 2) == []


def test_the_parts_of_addresses() -> None:
    assert (parent_of("s3://bucket/a/b/"), name_of("gs://bucket/a/b/")) == ("s3://bucket/a", "b")
    assert (parent_of("checkpoints"), parent_of(Path("/a/b"))) == ("", "/a")


def test_google_addresses_are_mapped_as_those_of_s3_are() -> None:
    """All that runs without Google's store: which file system, bucket and keys are asked."""
    system, key = storage._resolve("gs://bucket/data/train")
    assert (system.type_name, key) == ("gcs", "bucket/data/train")
    recipe = load_recipe(REPOSITORY / "yamls" / "debug" / "prune.yaml", ["variables.run=gs://bucket/runs/mine"])
    place = RunPlace(recipe)
    assert place.uploader is not None
    assert (place.uploader.remote_backend_name, place.uploader.backend_kwargs) == ("gs", {"bucket": "bucket"})
    place.uploader._run_name = "mine"
    assert place.uploader._remote_file_name(".tried") == "runs/mine/.tried"
    assert place.uploader._remote_file_name("runs/mine/checkpoints/x") == "runs/mine/checkpoints/x"
    (saver,) = place.checkpoint_saver()
    assert saver.remote_file_name is not None
    assert saver.remote_file_name.filename == "runs/mine/checkpoints/ep{epoch}-ba{batch}-rank{rank}.pt"
    assert "://" not in place.recipe["save_folder"]
