"""From a cut to losses: the rest of the shape, then the same training for all."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.peers.cuts import CUTS, complete, figures_of
from benchmarks.quality.jobs import begin_alone
from benchmarks.quality.run import Curve, mean_eval_loss, train_stage
from benchmarks.quality.sources import Source
from benchmarks.quality.ways import WAYS
from llmshearing import ComposerLlama
from llmshearing.convert.commands import export
from llmshearing.fileio import write_json


def result_file(source: Source, name: str, seed: int, out: Path) -> Path:
    """Where a run's result is."""
    return out / "runs" / f"{source.name}-{source.steps}-{name}-{seed}.json"


def run(source: Source, name: str, seed: int, out: Path) -> None:
    """Complete a cut that is there, train it and write the result. Call in a process of its own.

    What was looked at before is counted as steps, so that all have seen as many tokens in the end.
    """
    place = result_file(source, name, seed, out)
    begin_alone(out / "logs" / f"{place.stem}.txt")
    made = out / "cuts" / source.name / name
    looked_at = -(-CUTS[name].sequences // source.batch_size)
    with tempfile.TemporaryDirectory(prefix=f"{place.stem}-") as temporary:
        folder = Path(temporary)
        begun = source.model if CUTS[name].module is None else made / "model"
        start = complete(begun, source.target, seed, folder / "start")
        losses = {"0": mean_eval_loss(source, start["model"])}
        curve = Curve(source, looked_at)
        model = ComposerLlama(pretrained=start["model"])
        steps = source.steps - looked_at
        train_stage(source, WAYS["scored"], model, steps, seed, folder / "train", callbacks=[curve])
        export(folder / "train" / "latest-rank0.pt", folder / "final")
        losses |= curve.losses | {str(source.steps): mean_eval_loss(source, folder / "final")}
    result: dict[str, Any] = {
        "source": source.name,
        "way": name,
        "seed": seed,
        "steps": source.steps,
        "looked_at": looked_at,
        "losses": losses,
        "completed": start["completed"],
        "cut": figures_of(made),
    }
    write_json(place, result)
