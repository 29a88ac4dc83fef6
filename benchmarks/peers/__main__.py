"""``python -m benchmarks.peers``: other pruning tools on our work, at equal steps; ``make bench-peers`` installs them.

Each cuts a source as near to one target as it can, the rest of the shape is cut evenly (layers) or at random (all
else), and every model is trained by the same recipe; what a cut looked at is counted as steps. With the folder of
golden models beside the repository on its ``tiny`` source, else on a multi-head copy of the small demo's, so ``make
demo WAY=small`` comes first; with ``--real`` on SmolLM2-135M, from the package registry, for hours. Killed, it goes on.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

from benchmarks.peers.cuts import CUTS, cut, why_not
from benchmarks.peers.multi_head import multi_head_source
from benchmarks.peers.report import costs, table
from benchmarks.peers.run import result_file, run
from benchmarks.quality.sources import ROOT, Source, demo, real, tiny
from llmshearing.errors import InputError, cli
from llmshearing.fileio import read_json, write_json, write_text

SOURCES = ("tiny", "demo", "smollm2-97m", "smollm2-58m")


def find_source(name: str, shared: Path, out: Path) -> Source:
    """The source of that name.

    Raises:
        InputError: it is not there, and how it comes to be.
    """
    if name == "tiny":
        if not (shared / "golden" / "tiny_source").is_dir():
            raise InputError(f"'{shared}' has no golden models. Say --sources demo, after `make demo WAY=small`.")
        return tiny(shared, out / "data")
    return multi_head_source(demo(), out / "multi-head") if name == "demo" else real(out)[name]


@cli
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--sources", nargs="+", choices=SOURCES, help="default: tiny, where it is, or else demo")
    parser.add_argument("--real", action="store_true", help="on a real pre-trained model, to both its targets")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "peers")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder of golden models")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--ways", nargs="+", choices=list(CUTS), default=list(CUTS), metavar="WAY")
    parser.add_argument("--steps", type=int, help="batches of each run (default: the source's)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, of one thread each")
    options = parser.parse_args(arguments)
    out, shared = options.out.resolve(), options.shared.resolve()
    there = (shared / "golden" / "tiny_source").is_dir()
    names = options.sources or (SOURCES[2:] if options.real else ["tiny" if there else "demo"])
    sources = [find_source(name, shared, out) for name in names]
    sources = [replace(source, steps=options.steps or source.steps) for source in sources]
    pairs = [(source, name) for source in sources for name in options.ways]
    left_out = [reason for source, name in pairs if (reason := why_not(name, source))]
    pairs = [(source, name) for source, name in pairs if not why_not(name, source)]
    for source, name in pairs:
        cut(name, source, out)
    jobs = [(source, name, seed) for seed in options.seeds for source, name in pairs]
    missing = [job for job in jobs if not result_file(*job, out).is_file()]
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.peers.run"])
    with ProcessPoolExecutor(options.jobs, context, max_tasks_per_child=1) as pool:
        for future in [pool.submit(run, *job, out) for job in missing]:
            future.result()
    results = [read_json(result_file(*job, out)) for job in jobs]
    write_json(out / "results.json", {"results": results, "left_out": left_out})
    parts = []
    for source in sources:
        own = [result for result in results if result["source"] == source.name]
        parts += [table(own, source.title), costs(own)]
    text = "\n\n".join([*parts, *(f"Left out: {reason}." for reason in left_out)]) + "\n"
    write_text(out / "results.md", text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
