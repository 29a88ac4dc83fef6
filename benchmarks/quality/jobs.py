"""The runs of the comparison, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.quality.run import run
from benchmarks.quality.sources import Source
from benchmarks.quality.ways import WAYS, Way
from llmshearing.fileio import write_json

PRUNED = "rotated-importance"  # what budgets compare with random weights, which take longer
BUDGETS = {"scratch": (100, 200, 400, 800), PRUNED: (100, 200, 400)}
MIX_BUDGET = 400
RATES = (2, 4, 8)
RATED = ("rotated-scored", "rotated-scored-fitted")  # what learning rates are compared for
REAL_WAYS = (
    "random",
    "importance",
    "rotated-importance",
    "scored",
    "rotated-scored",
    "rotated-scored-fitted",
    "rotated-even-fitted",
    "rotated-scored-fitted-distilled",
)
REAL_BUDGETS = (100, 25, 400)


@dataclass(frozen=True)
class Job:
    """One run: a source, a way, a seed, and what differs from the source's own settings."""

    source: str
    way: str
    seed: int
    steps: int | None = None
    mix: str = "dynamic"
    rate: int = 1  # times the source's learning rate

    @property
    def name(self) -> str:
        """Of its result file."""
        steps = f"-{self.steps}" if self.steps else ""
        rate = f"-{self.rate}x" if self.rate > 1 else ""
        return f"{self.source}{steps}-{self.mix}-{self.way}{rate}-{self.seed}"


def all_jobs(sources: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """What has to run, the seeds' first ones first."""
    jobs = []
    for seed in seeds:
        jobs += [Job(source, way, seed) for source in sources for way in WAYS]
        jobs += [Job(source, way, seed, rate=rate) for source in sources for way in RATED for rate in RATES]
        jobs += [Job("demo", way, seed, steps, "constant") for way, budgets in BUDGETS.items() for steps in budgets]
        jobs.append(Job("demo", PRUNED, seed, MIX_BUDGET, "dynamic"))
    return jobs


def real_jobs(sources: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """The same on real sources: the budget of most interest first, then the seeds' first ones."""
    return [
        Job(source, way, seed, steps, "constant")
        for steps in REAL_BUDGETS
        for seed in seeds
        for source in sources
        for way in REAL_WAYS
    ]


def begin_alone(log: Path) -> None:
    """Set a run's own process up: on one thread, and what is printed goes to its log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)


def run_job(job: Job, source: Source, out: Path) -> None:
    """Run one job and write its result; what is printed goes to its log. Call in a process of its own."""
    begin_alone(out / "logs" / f"{job.name}.txt")
    if job.mix == "constant":
        source = replace(source, references=None)
    source = replace(source, lr=source.lr * job.rate)
    with tempfile.TemporaryDirectory(prefix=f"{job.name}-") as folder:
        way = WAYS[job.way]
        rotated, scores = rotated_folder(source, out), scores_file(source, way, out)
        result = run(source, way, job.seed, Path(folder), rotated=str(rotated), scores=scores, steps=job.steps)
    write_json(out / "runs" / f"{job.name}.json", {"job": vars(job), **result})


def rotated_folder(source: Source, out: Path) -> Path:
    """Where a source's model is after ``convert rotate``."""
    return out / "rotated" / Path(source.model).name


def scores_file(source: Source, way: Way, out: Path) -> Path:
    """Where the scores are of what a way shears."""
    return out / "scores" / f"{Path(source.model).name}{'-rotated' * way.rotated}.safetensors"


def run_all(jobs: Sequence[Job], sources: Mapping[str, Source], out: Path, *, at_once: int) -> None:
    """Run jobs in processes of their own, which one that has imported everything forks: that saves seconds per run.

    Raises:
        RuntimeError: a run failed; those that had begun have gone on to their ends.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(at_once, context, max_tasks_per_child=1) as pool:
        futures = {pool.submit(run_job, job, sources[job.source], out): job.name for job in jobs}
        for future in tqdm(as_completed(futures), total=len(futures), unit="run"):
            if error := future.exception():
                pool.shutdown(wait=False, cancel_futures=True)
                log = out / "logs" / f"{futures[future]}.txt"
                raise RuntimeError(f"The run '{futures[future]}' failed; what it printed is in '{log}'.") from error
