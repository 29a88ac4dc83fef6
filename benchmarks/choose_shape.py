"""``python -m benchmarks.choose_shape``: does the ranking of ``llmshearing.choose_shape`` agree with trained losses?

Shapes of equal size, from the top, the middle and the bottom of the ranking, are cut by scores, fitted, and trained for
the same number of batches, with several seeds each. Needs the folder of golden models beside the repository.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig

from benchmarks.quality.report import spread
from benchmarks.quality.run import SCORED, run
from benchmarks.quality.sources import ROOT, Source, find_sources
from benchmarks.quality.ways import Way
from llmshearing import ModelShape
from llmshearing.choose_shape.choose import choose
from llmshearing.errors import InputError, cli
from llmshearing.score import score_model

FITTED = 12  # candidates that are ranked by their loss right after a fit
WAY = Way("scored; fitted", None, scored=True, fitted=True)


def trained(source: Source, target: dict[str, int], seed: int, scores: Path, steps: int) -> float:
    """The loss that a shape ends at. Call in a process of its own."""
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        made = run(replace(source, target=target), WAY, seed, Path(folder), rotated="", scores=scores, steps=steps)
    return made["final"]


def spread_out(candidates: Sequence[Any], number: int) -> list[Any]:
    """So many of them, in their order, from the first to the last.

    Raises:
        InputError: there are not so many.
    """
    if len(candidates) < number:
        raise InputError(f"There are {len(candidates)} candidates of this size, not {number}. Ask for another size.")
    return [candidates[place] for place in np.linspace(0, len(candidates) - 1, number).round().astype(int)]


def rank_correlation(ranking: Sequence[float], losses: Sequence[float]) -> float:
    """Spearman's coefficient of values without ties."""
    first, second = (np.argsort(np.argsort(values)) for values in (ranking, losses))
    return float(np.corrcoef(first, second)[0, 1])


@cli
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.choose_shape", description=__doc__)
    parser.add_argument("--source", default="stories", help="tiny or stories (default)")
    parser.add_argument("--share", type=float, default=0.4, help="of the source's parameters (default: 0.4)")
    parser.add_argument("--shapes", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder of golden models")
    options = parser.parse_args(arguments)
    work = ROOT / "runs" / "choose-shape"
    sources = find_sources(options.shared, work / "data")
    if options.source not in sources:
        raise InputError(f"There is no source '{options.source}' in '{options.shared}'; there are {sorted(sources)}.")
    source = sources[options.source]
    scores = work / "scores" / f"{source.name}.safetensors"
    if not scores.is_file():
        score_model(source.model, scores, data=source.data, num_sequences=SCORED)
    size = ModelShape.from_hf_config(AutoConfig.from_pretrained(source.model)).num_parameters()
    wanted = str(options.share * size)
    fitted = choose(source.model, parameters=wanted, scores=scores, data=source.data, best=FITTED, show=FITTED)
    shapes = spread_out(fitted["candidates"], options.shapes)
    jobs = [(number, seed) for seed in options.seeds for number in range(len(shapes))]
    os.environ["OMP_NUM_THREADS"] = "1"
    losses: dict[int, list[float]] = {number: [] for number in range(len(shapes))}
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("forkserver"), max_tasks_per_child=1) as pool:
        futures = [
            pool.submit(trained, source, shapes[number]["target"], seed, scores, options.steps) for number, seed in jobs
        ]
        for (number, seed), future in zip(jobs, futures, strict=True):
            losses[number].append(future.result())
            print(f"shape {number + 1}, seed {seed}: {losses[number][-1]:.4f}", flush=True)
    print(f"\nSource '{source.name}', {options.share:.0%} of {size:,} parameters, {options.steps} batches.\n")
    print("| rank | layers, hidden, neurons, heads/KV heads | parameters | right after the fit | trained | seeds |")
    print("|---|---|---|---|---|---|")
    for number, shape in enumerate(shapes):
        sizes = "{num_hidden_layers}, {hidden_size}, {intermediate_size}, {num_attention_heads}/{num_key_value_heads}"
        print(
            f"| {number + 1} | {sizes.format(**shape)} | {shape['num_parameters']:,} | {shape['fitted_loss']:.3f} | "
            f"{spread(losses[number])} | {len(losses[number])} |"
        )
    means = [statistics.mean(losses[number]) for number in range(len(shapes))]
    print(f"\nSpearman's coefficient: {rank_correlation([shape['fitted_loss'] for shape in shapes], means):+.2f}")


if __name__ == "__main__":
    main()
