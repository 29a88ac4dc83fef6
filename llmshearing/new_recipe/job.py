"""What both recipes are of, and the commands that go with them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from llmshearing.architecture.shapes import ModelShape
from llmshearing.new_recipe.plan import Machine, Plan
from llmshearing.storage import is_remote


@dataclass(frozen=True)
class Job:
    """What both recipes are of.

    Args:
        name: of the runs.
        model: Hugging Face folder or hub id of the source.
        data: what ``data_prep/prepare.py`` wrote.
        run: folder of everything that the runs write.
        out: folder of the recipes.
        source: shape of the model.
        target: shape to shear it to.
        sizes: the target as ``TargetedPruning`` takes it.
        proportions: share of each domain at first.
        seq_len: tokens of a sequence.
        positions: that the model has.
        own: what a config made of the sizes alone would not have, see :func:`.write.own_values`.
        machine: that trains.
        plan: both runs.
    """

    name: str
    model: str
    data: str
    run: str
    out: str
    source: ModelShape
    target: ModelShape
    sizes: Mapping[str, int]
    proportions: Mapping[str, float]
    seq_len: int
    positions: int
    own: Mapping[str, bool | int]
    machine: Machine
    plan: Plan

    @property
    def remote(self) -> bool:
        """Whether the data lies in an object store."""
        return is_remote(self.data)

    @property
    def pruned(self) -> str:
        """What the first run starts from."""
        return f"{self.run}/rotated" if self.plan.rotated else self.model


def composer(job: Job, stage: str) -> str:
    """The command of a run."""
    number = "" if job.machine.num_devices == 1 else f"-n {job.machine.num_devices} "
    return f"composer {number}-m llmshearing.train {shlex.quote(f'{job.out}/{stage}.yaml')}"


def commands(job: Job) -> list[str]:
    """What to run, in order."""
    convert = "python -m llmshearing.convert"
    model, data, run, pruned = map(shlex.quote, (job.model, job.data, job.run, job.pruned))
    before = [f"python -m llmshearing.reference_loss eval {model} {data} --out {data}/reference_losses.json"]
    fit = ""
    if not job.plan.learned:
        if job.plan.rotated:
            before.append(f"{convert} rotate {model} {pruned} --data {data}")
        before.append(f"python -m llmshearing.score {pruned} {run}/scores.safetensors --data {data}")
        fit = f" --fit {data}"
    return [
        *before,
        composer(job, "prune"),
        f"{convert} shear {run}/prune/checkpoints/latest-rank0.pt {run}/sheared{fit}",
        composer(job, "continue"),
        f"{convert} export {run}/continue/checkpoints/latest-rank0.pt {run}/final",
        f"python -m llmshearing.report {run}",
    ]
