"""``python -m benchmarks.quality``: every way to a small model, at equal steps, and what a pruned start is worth.

Runs what is not in OUT yet, each run in a process of its own, and writes ``results.json``, ``results.md`` and
``results.png`` there. With the folder of golden models beside the repository the ways are compared on its two sources,
else on the demo's; budgets and data mixes are compared on the demo's, so ``make demo`` comes first.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.quality.report import write_report
from benchmarks.quality.run import run
from benchmarks.quality.sources import ROOT, Source, demo, find_sources
from benchmarks.quality.ways import WAYS
from llmshearing.convert.rotate import rotate
from llmshearing.errors import cli
from llmshearing.fileio import read_json, write_json

BUDGETS = (125, 250, 500, 1000)
PRUNED = "rotated-importance"  # what budgets compare with random weights
MIX_BUDGET = 500


@dataclass(frozen=True)
class Job:
    """One run: a source, a way, a seed, and what differs from the source's own settings."""

    source: str
    way: str
    seed: int
    steps: int | None = None
    mix: str = "dynamic"

    @property
    def name(self) -> str:
        """Of its result file."""
        steps = f"-{self.steps}" if self.steps else ""
        return f"{self.source}{steps}-{self.mix}-{self.way}-{self.seed}"


def all_jobs(sources: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """What has to run, the seeds' first ones first."""
    jobs = []
    for seed in seeds:
        jobs += [Job(source, way, seed) for source in sources for way in WAYS]
        jobs += [Job("demo", way, seed, steps, "constant") for steps in BUDGETS for way in ("scratch", PRUNED)]
        jobs.append(Job("demo", PRUNED, seed, MIX_BUDGET, "dynamic"))
    return jobs


def run_job(job: Job, source: Source, out: Path) -> None:
    """Run one job in this process and write its result."""
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    if job.mix == "constant":
        source = replace(source, references=None)
    with tempfile.TemporaryDirectory(prefix=f"{job.name}-") as folder:
        rotated = str(out / "rotated" / source.name)
        result = run(source, WAYS[job.way], job.seed, Path(folder), rotated=rotated, steps=job.steps)
    write_json(out / "runs" / f"{job.name}.json", {"job": vars(job), **result})


def _in_a_process(job: Job, options: argparse.Namespace) -> None:
    command = [sys.executable, "-m", "benchmarks.quality", "--out", str(options.out), "--job", job.name]
    command += ["--shared", str(options.shared), "--seeds", *map(str, options.seeds)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{job.name} failed:\n{done.stderr[-3000:]}")


@cli
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "quality")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder of golden models")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, of one thread each")
    parser.add_argument("--only", default="", help="part of the names of the runs to make")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    out = options.out = options.out.resolve()
    sources = {**find_sources(options.shared, out / "data"), "demo": demo()}
    compared = [name for name in sources if name != "demo"] or ["demo"]
    jobs = all_jobs(compared, options.seeds)
    if options.job:
        (job,) = (job for job in jobs if job.name == options.job)
        run_job(job, sources[job.source], out)
        return
    missing = [job for job in jobs if options.only in job.name and not (out / "runs" / f"{job.name}.json").is_file()]
    for name in sorted({job.source for job in missing if WAYS[job.way].rotated}):
        if not (out / "rotated" / name).is_dir():
            rotate(sources[name].model, out / "rotated" / name, data=sources[name].data)
    with ThreadPoolExecutor(options.jobs) as pool, tqdm(total=len(missing), unit="run") as progress:
        for _ in pool.map(lambda job: _in_a_process(job, options), missing):
            progress.update()
    results = [read_json(path) for job in jobs if (path := out / "runs" / f"{job.name}.json").is_file()]
    write_json(out / "results.json", {"results": results})
    sys.stdout.write(write_report(results, sources, out) + "\n")


if __name__ == "__main__":
    main()
