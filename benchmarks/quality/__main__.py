"""``python -m benchmarks.quality``: every way to a small model, at equal steps, and what a pruned start is worth.

Runs what is not in OUT yet, each run in a process of its own, and writes ``results.json``, ``results.md`` and
``results.png`` there. With the folder of golden models beside the repository the ways are compared on its two sources,
else on the demo's; budgets and data mixes are compared on the demo's, so ``make demo`` comes first.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.quality.jobs import all_jobs, run_all
from benchmarks.quality.report import write_report
from benchmarks.quality.sources import ROOT, demo, find_sources
from benchmarks.quality.ways import WAYS
from llmshearing.convert.rotate import rotate
from llmshearing.errors import cli
from llmshearing.fileio import read_json, write_json


@cli
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "quality")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder of golden models")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, of one thread each")
    parser.add_argument("--only", default="", help="part of the names of the runs to make")
    options = parser.parse_args(arguments)
    out = options.out = options.out.resolve()
    sources = {**find_sources(options.shared, out / "data"), "demo": demo()}
    compared = [name for name in sources if name != "demo"] or ["demo"]
    jobs = all_jobs(compared, options.seeds)
    missing = [job for job in jobs if options.only in job.name and not (out / "runs" / f"{job.name}.json").is_file()]
    for name in sorted({job.source for job in missing if WAYS[job.way].rotated}):
        if not (out / "rotated" / name).is_dir():
            rotate(sources[name].model, out / "rotated" / name, data=sources[name].data)
    run_all(missing, sources, out, at_once=options.jobs)
    results = [read_json(path) for job in jobs if (path := out / "runs" / f"{job.name}.json").is_file()]
    write_json(out / "results.json", {"results": results})
    sys.stdout.write(write_report(results, sources, out) + "\n")


if __name__ == "__main__":
    main()
