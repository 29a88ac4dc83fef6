"""``python -m benchmarks.quality``: every way to a small model, at equal steps, and what a pruned start is worth.

Runs what is not in OUT yet, each run in a process of its own, and writes ``results.json``, ``results.md`` and
``results.png`` there. With the folder of golden models beside the repository the ways are compared on its two sources,
else on the small demo's; budgets and data mixes are compared on the latter, so ``make demo WAY=small`` comes first.
With ``--real`` it is SmolLM2-135M instead, from the package registry, and takes many hours: killed, it goes on.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.quality.jobs import all_jobs, real_jobs, rotated_folder, run_all, scores_file
from benchmarks.quality.report import write_report
from benchmarks.quality.run import SCORED
from benchmarks.quality.sources import ROOT, demo, find_sources, real
from benchmarks.quality.ways import WAYS
from llmshearing.convert.rotate import rotate
from llmshearing.errors import cli
from llmshearing.fileio import read_json, write_json
from llmshearing.score import score_model


@cli
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--real", action="store_true", help="on a real pre-trained model")
    parser.add_argument("--out", type=Path, help="default: runs/quality, or runs/quality-real")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder of golden models")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, of one thread each")
    parser.add_argument("--only", default="", help="part of the names of the runs to make")
    options = parser.parse_args(arguments)
    out = (options.out or ROOT / "runs" / ("quality-real" if options.real else "quality")).resolve()
    if options.real:
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        sources = real(out)
        jobs = real_jobs(list(sources), options.seeds)
    else:
        sources = find_sources(options.shared, out / "data")
        jobs = all_jobs(list(sources), options.seeds)
        if any(job.source == "demo" and options.only in job.name for job in jobs):
            sources = {**sources, "demo": demo()}
        jobs = [job for job in jobs if job.source in sources]
    missing = [job for job in jobs if options.only in job.name and not (out / "runs" / f"{job.name}.json").is_file()]
    for job in missing:
        source, way = sources[job.source], WAYS[job.way]
        rotated, scores = rotated_folder(source, out), scores_file(source, way, out)
        if way.rotated and not rotated.is_dir():
            rotate(source.model, rotated, data=source.data)
        if way.scored and not scores.is_file():
            model = str(rotated) if way.rotated else source.model
            dtype = "bfloat16" if source.bfloat16 else "float32"
            score_model(model, scores, data=source.data, num_sequences=SCORED, dtype=dtype)
    run_all(missing, sources, out, at_once=options.jobs)
    results = [read_json(path) for job in jobs if (path := out / "runs" / f"{job.name}.json").is_file()]
    write_json(out / "results.json", {"results": results})
    sys.stdout.write(write_report(results, sources, out) + "\n")


if __name__ == "__main__":
    main()
