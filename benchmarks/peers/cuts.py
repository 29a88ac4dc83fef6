"""The cuts that are compared, each in a process of its own, and what completes them to the target's shape."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig

from benchmarks.quality.layers import even_scores
from benchmarks.quality.run import LOOKED_AT, SCORED
from benchmarks.quality.sources import ROOT, Source
from llmshearing.architecture.axes import DIMENSIONS, LAYERS
from llmshearing.architecture.shapes import ModelShape
from llmshearing.convert.commands import shear
from llmshearing.data.prepared import rows_in_turns
from llmshearing.errors import InputError
from llmshearing.fileio import new_folder, read_json, write_json
from llmshearing.models.pretrained import load_pretrained
from llmshearing.pruning.noise import generator
from llmshearing.pruning.scores import Scores, all_groups, mark_of
from llmshearing.pruning.target import resolve_target

PYTHON = ROOT / ".venv-peers" / "bin" / "python"


@dataclass(frozen=True)
class Cut:
    """One row of the table.

    Args:
        title: for tables.
        cuts: what of the shape it can cut, for tables.
        sequences: how many it looks at; they are counted as steps.
        module: that makes the cut. ``None``: nothing does, and all is cut by :func:`complete`.
        multi_head: whether the source must have a key-value head for every query head.
    """

    title: str
    cuts: str
    sequences: int = 0
    module: str | None = None
    multi_head: bool = False

    @property
    def foreign(self) -> bool:
        """Whether the tool is in the peers' environment."""
        return self.module == "foreign"


ALL = "all"
CUTS = {
    "random": Cut("random units", "nothing"),
    "torch-pruning": Cut("torch-pruning 1.6.1, Taylor", "hidden, heads, neurons", SCORED, "foreign", multi_head=True),
    "optipfair": Cut("optipfair 0.4.2", "layers, neurons", SCORED, "foreign"),
    "fmchisel": Cut("fmchisel 0.1.2, OSSCAR", "KV groups, neurons", SCORED + LOOKED_AT, "foreign"),
    "minitron": Cut("Minitron's scores", ALL, SCORED, "own"),
    "scored": Cut("ours: scored", ALL, SCORED, "own"),
    "fitted": Cut("ours: rotated; scored; fitted", ALL, SCORED + LOOKED_AT, "own"),
}


def why_not(name: str, source: Source) -> str | None:
    """Why a cut of a source is left out; ``None`` where it is not."""
    shape = ModelShape.from_hf_config(AutoConfig.from_pretrained(source.model))
    if CUTS[name].multi_head and shape.queries_per_group > 1:
        return (
            f"{CUTS[name].title} on '{source.name}': with grouped-query attention ({shape.num_attention_heads} heads, "
            f"{shape.num_key_value_heads} KV heads) it does not come to an end of tracing the model"
        )
    return None


def cut(name: str, source: Source, out: Path) -> Path:
    """Make one cut, unless it is there: ``model``, what the tool itself comes to, and ``cut.json``.

    Raises:
        InputError: the peers' environment is not there, or the tool failed.
    """
    place, way = out / "cuts" / source.name / name, CUTS[name]
    if way.module is None or place.is_dir():
        return place
    if way.foreign and not PYTHON.exists():
        raise InputError(f"There is no '{PYTHON}' for '{name}'. Run `make bench-peers`, which installs it.")
    shape = ModelShape.from_hf_config(config := AutoConfig.from_pretrained(source.model))
    longest = config.max_position_embeddings
    rows = rows_in_turns(source.data, way.sequences, vocab_size=shape.vocab_size, longest=longest)
    with new_folder(place) as folder:
        np.save(folder / "rows.npy", rows.numpy())
        job = {
            "model": source.model,
            "rows": str(folder / "rows.npy"),
            "target": resolve_target(shape, source.target).to_dict(),
            "given": dict(source.target),
            "data": str(source.data),
            "dtype": "bfloat16" if source.bfloat16 else "float32",
        }
        write_json(folder / "job.json", job)
        python = str(PYTHON) if way.foreign else sys.executable
        command = [python, "-m", f"benchmarks.peers.{way.module}", name, str(folder / "job.json"), str(folder)]
        surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        ran = subprocess.run(command, cwd=ROOT, env=surroundings, capture_output=True, text=True, check=False)
        if ran.returncode:
            log = out / "logs" / f"{source.name}-{name}.txt"
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(ran.stdout + ran.stderr)
            last = (ran.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise InputError(f"The cut '{name}' of '{source.name}' failed: {last} All that it printed is in '{log}'.")
    return place


def complete(folder: str | Path, target: Mapping[str, int], seed: int, out: Path) -> dict[str, Any]:
    """Bring a model to the target's shape: layers evenly, all else at random.

    Args:
        folder: the Hugging Face folder, of a shape between the source's and the target's.
        target: sizes by config name, as they are asked for of the source.
        seed: of what is at random.
        out: the folder to create, unless the shape is the target's already.

    Returns:
        ``model``, the folder of the target's shape, and ``completed``, what was cut: old and new size by dimension.
    """
    shape = ModelShape.from_hf_config(AutoConfig.from_pretrained(folder))
    wanted = resolve_target(shape, target)
    sizes = {name: [getattr(shape, name), getattr(wanted, name)] for name in DIMENSIONS}
    completed = {name: pair for name, pair in sizes.items() if pair[0] != pair[1]}
    if not completed:
        return {"model": str(folder), "completed": {}}
    noise = generator("units", seed)
    units: dict[str, torch.Tensor] = {
        group.dimension: torch.rand(group.shape, generator=noise) for group in all_groups(shape)
    }
    if LAYERS in units:
        units[LAYERS] = even_scores(shape.num_hidden_layers, wanted.num_hidden_layers)
    embedding = load_pretrained(str(folder)).get_input_embeddings().weight.detach()  # type: ignore[operator]
    scores = out.with_name(f"{out.name}-scores.safetensors")
    Scores(shape, units, mark_of(embedding)).save(scores)
    shear(folder, out, scores=scores, target=target)
    return {"model": str(out), "completed": completed}


def figures_of(place: Path) -> dict[str, Any]:
    """What a cut took, and what its tool chose; nothing where no tool was asked."""
    return read_json(place / "cut.json") if (place / "cut.json").is_file() else {}
