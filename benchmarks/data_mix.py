"""``python -m benchmarks.data_mix``: what rules for the data mix are worth, on domains that recover unlike each other.

One sheared and fitted model, trained on from there with each rule and several seeds, at equal steps: how far the worst
domain stays behind the source, and the mean loss over domains. Killed, it goes on. The sources:

tiny
    seven domains of RedPajama, on which it was trained, though not to the end
stories
    stories260K, a model of TinyStories, on its own text and on four domains that it never saw
smollm2-58m
    SmolLM2-135M from the package registry, on the demo's text: hours

The first two need the folder of golden models beside the repository.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from benchmarks.quality.jobs import begin_alone
from benchmarks.quality.report import spread
from benchmarks.quality.run import FITTED, SCORED, train_stage
from benchmarks.quality.sources import ROOT, Source, real, stories, tiny
from benchmarks.quality.ways import Way
from llmshearing import ComposerLlama
from llmshearing.convert.commands import export, shear
from llmshearing.data_prep.prepare import prepare
from llmshearing.data_prep.tokenizer import load_tokenizer
from llmshearing.errors import InputError, cli
from llmshearing.fileio import read_json, write_json, write_text
from llmshearing.reference_loss.evaluate import evaluate
from llmshearing.score import score_model

PLAIN = Way("scored; fitted", None, scored=True, fitted=True)
OTHERS = ("cc", "github", "stackexchange", "wiki")  # of the sample of RedPajama; its wiki is Bulgarian
#: Settings of ``DynamicBatchLoading`` by rule. ``None``: the mix stays even.
RULES: dict[str, Mapping[str, Any] | None] = {
    "constant": None,
    "Algorithm 1": {},
    "Algorithm 1, predicted references": {"predict_references": True},
    "ado": {"update_type": "ado"},
}
SOURCES = ("tiny", "stories", "smollm2-58m")
REAL_STEPS, REAL_BATCH, REAL_INTERVAL = 96, 4, 12


def find_source(name: str, shared: Path, work: Path) -> Source:
    """The source of that name.

    Raises:
        InputError: ``shared`` has no golden models, or a package cannot be fetched.
    """
    if name != SOURCES[2] and not (shared / "golden" / "tiny_source").is_dir():
        raise InputError(f"'{shared}' has no golden models. Take --source {SOURCES[2]} instead.")
    if name == "tiny":
        return tiny(shared, work)
    if name == "stories":
        return _stories_and_others(shared, work)
    source = real(work)[name]
    data = work / "mixed"
    if not (data / "manifest.json").is_file():
        prepare(work / "corpus", data, tokenizer=load_tokenizer(source.model), seq_len=256, eval_sequences=32)
    return replace(source, data=data, steps=REAL_STEPS, batch_size=REAL_BATCH, interval=REAL_INTERVAL, steered_by=8)


def _stories_and_others(shared: Path, work: Path) -> Source:
    source, data, corpus = stories(shared, work), work / "stories-and-others", work / "stories-corpus"
    if not (data / "manifest.json").is_file():
        written: Any = AutoTokenizer.from_pretrained(source.model)
        rows = np.load(shared / "golden" / "stories_self" / "rows.npy")
        texts = [written.decode(row.tolist(), skip_special_tokens=True) for row in rows]
        write_text(corpus / "stories" / "stories.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts))
        for domain in OTHERS:
            folder = shared / "data" / "sample_redpajama" / domain
            for path in folder.glob("*.jsonl"):
                write_text(corpus / domain / path.name, path.read_text(encoding="utf-8"))
        prepare(corpus, data, tokenizer=load_tokenizer(source.model), seq_len=128, eval_sequences=48)
    return replace(source, data=data, steps=400, interval=25)


def start_of(source: Source, work: Path) -> Path:
    """The model that all runs begin with, and beside it the source's losses by domain."""
    start, scores = work / "start" / source.name, work / "scores" / f"{source.name}.safetensors"
    dtype = "bfloat16" if source.bfloat16 else "float32"
    if not scores.is_file():
        score_model(source.model, scores, data=source.data, num_sequences=SCORED, dtype=dtype)
    if not start.is_dir():
        shear(source.model, start, scores=scores, target=source.target, fit=source.data, fit_sequences=FITTED)
    for name, model in (("source", source.model), ("sheared", str(start))):
        path = work / "losses" / f"{source.name}-{name}.json"
        if not path.is_file():
            write_json(path, evaluate(model, source.data / "eval", batch_size=16))
    return start


def run_rule(source: Source, rule: str, seed: int, work: Path) -> None:
    """Train with one rule and one seed, and write what it ends at. Call in a process of its own."""
    begin_alone(work / "logs" / f"{_result(source, rule, seed, work).stem}.txt")
    settings = RULES[rule]
    references = source.references or read_json(work / "losses" / f"{source.name}-source.json")["losses"]
    if settings is None:
        source = replace(source, references=None)
    elif settings.get("predict_references"):
        source = replace(source, references={}, steering=settings)  # its own alone
    else:
        source = replace(source, references=references, steering={**settings})
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = ComposerLlama(pretrained=str(work / "start" / source.name))
        train_stage(source, PLAIN, model, source.steps, seed, folder / "train")
        export(folder / "train" / "latest-rank0.pt", folder / "final")
        losses = evaluate(str(folder / "final"), source.data / "eval", batch_size=16)["losses"]
    write_json(_result(source, rule, seed, work), {"losses": losses})


def _result(source: Source, rule: str, seed: int, work: Path) -> Path:
    return work / "runs" / f"{source.name}-{rule.replace(', ', '-').replace(' ', '-')}-{seed}.json"


def table(
    results: Mapping[str, Sequence[Mapping[str, float]]], start: Mapping[str, float], source: Mapping[str, float]
) -> str:
    """Markdown: by rule the largest gap to the source and the mean loss with deviations, and each domain's mean.

    Args:
        results: by rule, for each seed the loss by domain.
        start: loss by domain before training.
        source: loss by domain of the model that was sheared.
    """
    domains = sorted(start)
    lines = [f"| rule | worst gap | mean | {' | '.join(domains)} | seeds |", "|---" * (len(domains) + 4) + "|"]
    for rule, runs in {"the source": [source], "before training": [start], **results}.items():
        figures = [
            spread([max(run[domain] - source[domain] for domain in domains) for run in runs]),
            spread([statistics.mean(run[domain] for domain in domains) for run in runs]),
            *(f"{statistics.mean([run[domain] for run in runs]):.3f}" for domain in domains),
        ]
        lines.append(f"| {rule} | {' | '.join(figures)} | {len(runs)} |")
    return "\n".join(lines)


@cli
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data_mix",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--source", choices=SOURCES, default="tiny", help="see above (default: tiny)")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "data-mix")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder of golden models")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rules", nargs="+", default=list(RULES), metavar="RULE", help=f"of {', '.join(RULES)}")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, of one thread each")
    parser.add_argument("--steps", type=int, help="batches of each run (default: the source's)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if unknown := set(options.rules) - set(RULES):
        raise InputError(f"--rules: there is no rule {sorted(unknown)}; there are {', '.join(RULES)}.")
    work = options.out.resolve()
    source = find_source(options.source, options.shared, work)
    source = replace(source, steps=options.steps or source.steps)
    start_of(source, work)
    os.environ["OMP_NUM_THREADS"] = "1"
    jobs = [(rule, seed) for seed in options.seeds for rule in options.rules]
    missing = [job for job in jobs if not _result(source, *job, work).is_file()]
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(options.jobs, context, max_tasks_per_child=1) as pool:
        for future in [pool.submit(run_rule, source, *job, work) for job in missing]:
            future.result()
    results = {
        rule: [read_json(_result(source, rule, seed, work))["losses"] for seed in options.seeds]
        for rule in options.rules
    }
    length = f"{source.steps} batches of {source.batch_size} sequences, rounds of {source.interval}"
    models = ("sheared", "source")
    begun, whole = (read_json(work / "losses" / f"{source.name}-{name}.json")["losses"] for name in models)
    sys.stdout.write(f"Source '{source.name}', {length}. Held-out nats per token.\n\n{table(results, begun, whole)}\n")


if __name__ == "__main__":
    main()
