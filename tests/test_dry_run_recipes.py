"""The shipped recipes as their dry runs see them: shapes, the paper's settings, the documented estimates."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from llmshearing.dry_run.report import Devices
from tests.conftest import REPOSITORY
from tests.dry_runs import children_seconds, recipe_of, run

# recipe -> parameters of the model it prunes and of the target
COUNTS = {
    "llama2-7b-to-2.7b": (6_738_415_616, 2_701_560_320),
    "llama2-7b-to-2.7b-short": (6_738_415_616, 2_701_560_320),
    "llama2-7b-to-1.3b": (6_738_415_616, 1_345_423_360),
    "llama2-7b-to-370m": (6_738_415_616, 373_867_520),
    "llama3.1-8b-to-3.6b": (8_030_261_248, 3_606_752_256),
    "mistral-7b-to-3b": (7_248_023_552, 3_020_073_984),
    "qwen2.5-7b-to-2.8b": (7_615_616_512, 2_810_386_432),
    "smollm2-135m-to-97m": (134_515_008, 97_349_184),
    "smollm2-135m-to-58m": (134_515_008, 57_821_568),
}


def test_every_pruning_and_continued_recipe_is_counted_here() -> None:
    for stage in ("prune", "continue"):
        assert {path.stem for path in (REPOSITORY / "yamls" / stage).glob("*.yaml")} == COUNTS.keys()


# demo and debug recipe -> parameters of the model that it trains, and of the target
SMALL_COUNTS = {
    ("demo", "prune"): (134_515_008, 97_349_184),
    ("demo", "continue"): (97_349_184, None),
    ("demo-paper", "prune"): (134_515_008, 97_349_184),
    ("demo-paper", "continue"): (97_349_184, None),
    ("demo-small", "source"): (6_229_248, None),
    ("demo-small", "prune"): (6_229_248, 1_565_568),
    ("demo-small", "continue"): (1_565_568, None),
    ("demo-small", "control"): (1_565_568, None),
    ("debug", "prune"): (303_680, 87_200),
}


def test_every_small_recipe_is_counted_here() -> None:
    paths = (REPOSITORY / "yamls").glob("de*/*.yaml")
    assert {(path.parent.name, path.stem) for path in paths} == SMALL_COUNTS.keys()


@pytest.mark.parametrize(("stage", "name"), SMALL_COUNTS)
def test_small_recipes_have_the_stated_shapes(
    stage: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # before anything is prepared or trained
    source, target = SMALL_COUNTS[stage, name]
    recipe = recipe_of(stage, name)
    text, findings = run(recipe, Devices(1))
    assert not findings.problems
    assert f": {source:,} parameters\n" in text
    assert ("target " in text) == (target is not None)
    assert target is None or f": {target:,} parameters, " in text
    splits = ["train"] if recipe["eval_loader"] is None else ["train", "eval"]
    assert {f"runs/{stage}/data/{split}" for split in splits} <= set(re.findall(r"data '(.*?)'", str(findings)))


@pytest.mark.parametrize("name", COUNTS)
def test_recipes_have_the_stated_shapes(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # no data, no models
    source, target = COUNTS[name]
    text, findings = run(recipe_of("prune", name))
    assert not findings.problems
    assert f": {source:,} parameters\n" in text
    assert f": {target:,} parameters, {target / source:.1%} of the model\n" in text
    recipe = recipe_of("continue", name)
    text, findings = run(recipe)
    assert not findings.problems
    assert f": {target:,} parameters\n" in text
    assert any("shearing.json" in what for what in findings.absent)
    assert any(recipe["train_loader"]["dataset"]["local"] in what for what in findings.absent)


@pytest.mark.parametrize("name", COUNTS)
def test_both_stages_go_together(name: str) -> None:
    pruning, after = recipe_of("prune", name), recipe_of("continue", name)
    for path in ("max_seq_len", "seed"):
        assert pruning[path] == after[path]
    assert pruning["train_loader"]["dataset"]["shuffle_seed"] == after["train_loader"]["dataset"]["shuffle_seed"]
    assert pruning["callbacks"] == after["callbacks"]
    text = (REPOSITORY / "yamls" / "prune" / f"{name}.yaml").read_text()
    assert f"{pruning['save_folder']}/latest-rank0.pt {after['variables']['sheared']}\n" in text
    assert f"{COUNTS[name][1]:,} parameters" in text


PAPER_LOSSES = {
    "llama2-7b-to-2.7b": (1.8712, 0.6883, 2.0325, 1.5353, 1.6297, 1.3560, 2.0328),
    "llama2-7b-to-1.3b": (1.9643, 0.7459, 2.1393, 1.6117, 1.7590, 1.4449, 2.1251),
    "llama2-7b-to-370m": (2.1401, 0.8694, 2.3625, 1.7791, 2.0470, 1.6637, 2.3139),
}


@pytest.mark.parametrize("name", PAPER_LOSSES)
def test_the_papers_settings(name: str) -> None:
    pruning, after = recipe_of("prune", name), recipe_of("continue", name)
    domains = ("cc", "github", "book", "stackexchange", "wiki", "arxiv", "c4")
    losses = dict(zip(domains, PAPER_LOSSES[name], strict=True))
    assert pruning["callbacks"]["dynamic_batch_loading"]["reference_losses"] == losses
    shares = (0.67, 0.045, 0.045, 0.02, 0.045, 0.025, 0.15)
    assert pruning["train_loader"]["dataset"]["proportions"] == dict(zip(domains, shares, strict=True))
    masks = pruning["algorithms"]["targeted_pruning"]
    assert (masks["lr"], masks["warmup"]) == (1.0, "640ba")
    for recipe, duration, batch, warmup, update in (
        (pruning, "3200ba", 32, "320ba", 50),
        (after, "51200ba", 256, "1536ba", 400),
    ):
        assert (recipe["max_duration"], recipe["global_train_batch_size"]) == (duration, batch)
        assert recipe["max_seq_len"] == 4096
        assert recipe["scheduler"] == {"name": "cosine_with_warmup", "t_warmup": warmup, "alpha_f": 0.1}
        assert recipe["train_loader"]["dataset"]["update_interval"] == update
        assert (recipe["optimizer"]["name"], recipe["optimizer"]["lr"]) == ("decoupled_adamw", 1e-4)
        assert recipe["optimizer"]["betas"] == [0.9, 0.95]
        assert recipe["algorithms"]["gradient_clipping"]["clipping_threshold"] == 1.0
        assert recipe["precision"] == "amp_bf16"
        assert recipe["fsdp_config"]["activation_checkpointing"]
        assert recipe["fsdp_config"]["reshard_after_forward"]
    assert after["train_loader"]["dataset"]["proportions"] == f"{after['variables']['sheared']}/shearing.json"


def table(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading of ``docs/hardware.md``, without its header."""
    page = (REPOSITORY / "docs" / "hardware.md").read_text(encoding="utf-8")
    section = page.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return rows[2:]


def test_the_hardware_table_is_what_dry_runs_print() -> None:
    rows = table("Estimates")
    assert [row[0] for row in rows] == [
        f"`{name}`" for name in COUNTS if name != "llama2-7b-to-2.7b-short" and not name.startswith("smollm2")
    ]
    for recipe, *written in rows:
        estimates: list[tuple[str, str]] = []
        for stage, devices in (("prune", 8), ("continue", 16)):
            text, _ = run(recipe_of(stage, recipe.strip("`")), Devices(devices))
            estimates += re.findall(r"about (\S+) GB per device|: (\S+) device-hours at 150 TFLOP/s", text)
        printed = ["".join(pair) for pair in estimates]
        for shown, found in zip(written, printed, strict=True):
            assert float(shown.replace(",", "")) == pytest.approx(float(found.replace(",", "")), rel=0.02), recipe


@pytest.mark.parametrize(("size", "hours"), [("97m", "4.8"), ("58m", "2.9")])
def test_the_laptop_recipes_take_a_night(size: str, hours: str) -> None:
    text, _ = run(recipe_of("continue", f"smollm2-135m-to-{size}"), Devices(1, device_tflops=0.6))
    assert (found := re.search(r": (\S+) device-hours at 0.6 TFLOP/s", text)) is not None
    assert float(found[1]) == pytest.approx(float(hours), abs=0.05)


def test_a_dry_run_takes_half_a_minute_at_most_and_says_all(tmp_path: Path) -> None:
    recipe = REPOSITORY / "yamls" / "prune" / "llama3.1-8b-to-3.6b.yaml"
    command = [sys.executable, "-m", "llmshearing.train", str(recipe), "dry_run.num_devices=16"]
    before = children_seconds()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True)
    assert children_seconds() - before < 30
    for expected in (
        r"model +32 layers.*: 8,030,261,248 parameters",
        r"target +28 layers.*: 3,606,752,256 parameters, 44\.9% of the model",
        r"tokens +3,200 batches of 32 sequences of 4096: 419,430,400",
        r"memory +about [\d.]+ GB per device",
        r"compute +about .* device-hours at 150 TFLOP/s, .* hours on 16",
        r"not here +data 'data/redpajama-llama3/train'",
    ):
        assert re.search(expected, done.stdout), done.stdout
    assert not list(tmp_path.iterdir())
