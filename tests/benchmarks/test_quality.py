"""The comparison of ways to a small model: its arithmetic, its jobs, and the recorded run of the original code."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from benchmarks.quality.jobs import (
    BUDGETS,
    RATED,
    RATES,
    REAL_BUDGETS,
    REAL_WAYS,
    Job,
    all_jobs,
    real_jobs,
    run_all,
    scores_file,
)
from benchmarks.quality.report import (
    compare_budgets,
    compare_mixes,
    compare_rates,
    compare_starts,
    compare_ways,
    steps_for,
    write_report,
)
from benchmarks.quality.run import SCORED, run
from benchmarks.quality.sources import REAL_TARGETS, Source, stories, tiny
from benchmarks.quality.ways import WAYS
from llmshearing.architecture.shapes import ModelShape
from llmshearing.convert.rotate import rotate
from llmshearing.score import score_model
from tests.conftest import REPOSITORY

EACH_KIND = ("scratch", "search", "random", "rotated-importance-distilled", "rotated-scored-fitted")


def result(way: str, seed: int, final: float, *, steps: int | None = None, mix: str = "dynamic") -> dict[str, Any]:
    job = {"source": "demo", "way": way, "seed": seed, "steps": steps, "mix": mix}
    return {"job": job, "sheared": None if way == "scratch" else 6.0, "final": final, "search": 8, "training": 92}


def test_report_gives_means_deviations_and_the_worth_of_a_pruned_start(tmp_path: Path) -> None:
    source = Source("demo", "the demo's", "model", tmp_path, {}, 100, 8, 1e-3, 10, 10)
    results = [result("random", seed, loss) for seed, loss in ((1, 4.0), (2, 5.0))]
    for steps in (100, 400):
        results.append(result("scratch", 1, 6 - steps / 100, steps=steps, mix="constant"))
        results.append(result("rotated-importance", 1, 3.5 - steps / 400, steps=steps, mix="constant"))
    results.append(result("scratch", 1, 1.5, steps=800, mix="constant"))
    text = write_report(results, {"demo": source}, tmp_path)
    assert "| random units | 8 + 92 | 6.000 (0.000) | 4.500 (0.707) | 2 |" in text
    assert "| 100 | 5.000 | 3.250 | 2.2 times the steps |" in text  # 4 ** (7 / 12): 3.25 is 7/12 of the way from 5 to 2
    assert "| 400 | 2.000 | 2.500 | 0.8 times the steps |\n| 800 | 1.500 | | |" in text
    assert (tmp_path / "results.md").read_text() == text + "\n"
    assert (tmp_path / "results.png").stat().st_size > 10_000


def test_the_published_tables_are_those_of_the_published_runs() -> None:
    results = json.loads((REPOSITORY / "docs" / "results.json").read_text())["results"]
    settings = {"tiny": ("far from converged", 300), "stories": ("converged", 600)}
    published = (REPOSITORY / "docs" / "results.md").read_text()
    for name, (title, steps) in settings.items():
        source = Source(name, title, "", Path(), {}, steps, 16, 1e-3, 0, 0)
        table = compare_ways(results, source)
        assert table in published
        assert table.count("\n| ") == len(WAYS) + 1, "a way has not been run"
        assert compare_starts(results, source, None) in published
        rates = compare_rates(results, source)
        assert rates in published
        assert rates.count("\n| ") == len(RATED) + 1, "a rate has not been run"
    for size in ("97M", "58M"):
        real = Source(f"smollm2-{size.lower()}", f"SmolLM2-135M to {size}", "", Path(), {}, 100, 8, 3e-4, 0, 0)
        assert compare_starts(results, real, 100) in published
    curve = [run for run in results if (run["job"]["source"], run["job"]["mix"]) == ("demo", "constant")]
    assert compare_budgets(curve) in published
    assert compare_mixes(results) in published


def test_a_table_shows_how_losses_fall_at_one_budget(tmp_path: Path) -> None:
    source = Source("real", "a real one", "model", tmp_path, {}, 100, 8, 1e-3, 10, 10)
    results = []
    for way, start, seed in (("scored", 8.0, 1), ("scored", 9.0, 2), ("rotated-scored-fitted", 5.0, 1)):
        run = result(way, seed, start - 4, steps=100, mix="constant")
        run["job"]["source"] = "real"
        curve = {"25": start - 1, "50": start - 2} if way == "scored" else {"50": start - 2}
        results.append({**run, "sheared": start, "curve": curve, "tokens_per_parameter": 0.0035})
    text = write_report(results, {"real": source}, tmp_path)
    assert "100 steps of 8 sequences, 0.0035 tokens per parameter of the target" in text
    assert "| way | right after shearing | 25 | 50 | final | seeds |" in text
    assert "| scored | 8.500 (0.707) | 7.500 (0.707) | 6.500 (0.707) | 4.500 (0.707) | 2 |" in text
    assert "| rotated; scored; fitted | 5.000 |  | 3.000 | 1.000 | 1 |" in text


def test_a_table_shows_what_learning_rates_come_to(tmp_path: Path) -> None:
    source = Source("demo", "the demo's", "model", tmp_path, {}, 100, 8, 1e-3, 10, 10)
    results = [result("scored", seed, 4.0) for seed in (1, 2)] + [result("random", 1, 5.0)]
    fast = result("scored", 1, 3.0)
    fast["job"]["rate"] = 4
    text = write_report([*results, fast], {"demo": source}, tmp_path)
    assert "multiples of 0.001, the other tables'.\n\n| way | 1 | 4 |\n" in text
    assert "| scored | 4.000 (0.000) | 3.000 |" in text
    assert "| scored | 8 + 92 | 6.000 (0.000) | 4.000 (0.000) | 2 |" in text  # the other tables are of one rate
    assert text.count("| random units |") == 1


def test_real_sources_run_every_budget_the_one_of_most_interest_first() -> None:
    jobs = real_jobs(list(REAL_TARGETS), [1, 2])
    assert len({job.name for job in jobs}) == len(jobs) == 2 * 2 * len(REAL_WAYS) * len(REAL_BUDGETS)
    assert {job.steps for job in jobs[: len(jobs) // len(REAL_BUDGETS)]} == {REAL_BUDGETS[0]}
    assert all(WAYS[job.way].shears for job in jobs)


def test_steps_for_a_loss_lie_between_neighbours_in_the_logarithm() -> None:
    curve = {100: 5.0, 400: 3.0}
    assert steps_for(curve, 4.0) == pytest.approx(200)
    assert steps_for(curve, 5.5) == 100
    assert steps_for(curve, 2.9) is None


def test_every_seed_runs_every_way_on_every_source_and_every_budget() -> None:
    jobs = all_jobs(["tiny", "stories"], [1, 2])
    assert (
        len({job.name for job in jobs})
        == len(jobs)
        == 2 * (2 * (len(WAYS) + len(RATED) * len(RATES)) + sum(map(len, BUDGETS.values())) + 1)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "way", ["scratch", "search", "random", "rotated-importance-distilled", "rotated-scored-fitted"]
)
def test_every_kind_of_way_ends_in_a_loss_of_the_target_shape(shared: Path, tmp_path: Path, way: str) -> None:
    source = stories(shared, tmp_path)
    if WAYS[way].rotated:
        rotate(source.model, tmp_path / "rotated", data=source.data)
    scores = scores_file(source, WAYS[way], tmp_path)
    if WAYS[way].scored:
        score_model(str(tmp_path / "rotated"), scores, data=source.data, num_sequences=SCORED)
    measured = run(
        source,
        WAYS[way],
        1,
        tmp_path / "run",
        rotated=str(tmp_path / "rotated"),
        scores=scores,
        steps=source.search + 20,
    )
    if way == "rotated-scored-fitted":
        assert measured["search"] == 2 + 5  # 32 sequences, and 64 with 16 to measure by, in batches of 16
    assert measured["search"] + measured["training"] == source.search + 20
    final = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final").eval()
    shape = ModelShape.from_hf_config(final.config)
    assert {name: getattr(shape, name) for name in source.target} == dict(source.target)
    rows = np.load(shared / "golden" / "stories_self" / "rows.npy")[-256:, :128]
    held_out = torch.from_numpy(rows.astype(np.int64))
    with torch.no_grad():
        assert measured["final"] == pytest.approx(final(input_ids=held_out, labels=held_out).loss.item(), rel=1e-4)
    # Training has made it better: than where shearing left it, or than a guess among all tokens.
    before = math.log(shape.vocab_size) if way == "scratch" else measured["sheared"]
    assert measured["final"] < before - 0.5


@pytest.mark.slow
def test_a_run_in_bfloat16_comes_near_to_that_in_float32(shared: Path, tmp_path: Path) -> None:
    source = stories(shared, tmp_path)
    finals = []
    for bfloat16 in (False, True):
        folder = tmp_path / f"run-{bfloat16}"
        measured = run(replace(source, bfloat16=bfloat16), WAYS["random"], 1, folder, rotated="", steps=101)
        assert measured["curve"]["100"] == pytest.approx(measured["final"], abs=0.05)  # of the model that is saved
        finals.append(measured["final"])
    assert finals[1] == pytest.approx(finals[0], abs=0.05)


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_those_that_ended_are_kept(shared: Path, tmp_path: Path) -> None:
    source = stories(shared, tmp_path)
    sources = {"stories": source, "lost": replace(source, name="lost", model=str(tmp_path / "nowhere"))}
    jobs = [Job("stories", "random", 1, 12), Job("lost", "random", 2, 12)]
    with pytest.raises(RuntimeError, match="'lost-12-dynamic-random-2' failed"):
        run_all(jobs, sources, tmp_path, at_once=1)
    kept = json.loads((tmp_path / "runs" / "stories-12-dynamic-random-1.json").read_text())
    assert kept["job"] == vars(jobs[0])
    assert kept["final"] < kept["sheared"]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["stories-12-dynamic-random-1.json"]


@pytest.mark.slow
def test_a_search_on_moving_weights_shears_those_of_the_source(shared: Path, tmp_path: Path) -> None:
    source = replace(stories(shared, tmp_path), search=10)
    run(source, WAYS["moving-search"], 1, tmp_path / "run", rotated="", steps=20)
    folders = {"sheared": tmp_path / "run" / "sheared", "source": Path(source.model)}
    weights = {name: load_file(folder / "model.safetensors") for name, folder in folders.items()}
    name = "model.layers.0.mlp.gate_proj.weight"
    assert weights["sheared"][name].shape == (source.target["intermediate_size"], source.target["hidden_size"])
    assert torch.isin(weights["sheared"][name], weights["source"][name]).all()


@pytest.mark.slow
def test_learning_from_importance_begins_with_its_choice(shared: Path, tmp_path: Path) -> None:
    source = stories(shared, tmp_path)
    run(source, WAYS["start"], 1, tmp_path / "run", rotated="", steps=9)  # too few to leave what importance chose
    masks = {}
    for stage in ("start", "prune"):
        saved = torch.load(tmp_path / "run" / stage / "latest-rank0.pt", weights_only=False)
        masks[stage] = dict(saved["state"]["algorithms"])["TargetedPruning"]["masks"]
    for name, chosen in masks["start"]["chosen"].items():
        learned = masks["prune"]["log_alpha"][name]
        assert learned[chosen].min() > learned[~chosen].max(), name


@pytest.mark.slow
def test_the_originals_constraint_ends_where_the_original_does(shared: Path, tmp_path: Path) -> None:
    recorded = json.loads((shared / "golden" / "upstream_tiny_run.json").read_text())["summary"]["pruned_eval_mean"]
    script = (
        "import sys, torch; from pathlib import Path; from benchmarks.quality.run import run;"
        "from benchmarks.quality.sources import tiny; from benchmarks.quality.ways import WAYS;"
        "torch.set_flush_denormal(True); torch.set_num_threads(1); work = Path(sys.argv[2]);"
        "source = tiny(Path(sys.argv[1]), work); seed = int(sys.argv[3]);"
        "print(run(source, WAYS['upstream'], seed, work / str(seed), rotated='')['final'])"
    )
    tiny(shared, tmp_path)  # prepares the data
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(shared), str(tmp_path), str(seed)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for seed in (1, 2, 3)
    ]
    losses = [float(process.communicate(timeout=1500)[0].splitlines()[-1]) for process in processes]
    assert statistics.mean(losses) == pytest.approx(recorded["mean"], abs=0.03), losses
