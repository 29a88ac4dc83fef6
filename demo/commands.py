"""What all ways share: command lines of the package, and what a way is."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from demo.stages import Stage

ROOT = Path(__file__).resolve().parents[1]
SEQ_LEN = 256


@dataclass(frozen=True)
class Commands:
    """What a way runs, in a folder of its own.

    Args:
        name: of the folder in ``runs``, and of that in ``yamls``.
        num_processes: of training.
        given_source: the model to shear; ``source`` in the way's own folder if ``None``.
        runs: the folder that has a folder for each way, from the repository's root.
        dtype: that models are measured in.
    """

    name: str
    num_processes: int = 1
    given_source: str | None = None
    runs: Path = Path("runs")
    dtype: str = "float32"

    @property
    def run(self) -> Path:
        """Where everything goes, from the repository's root."""
        return self.runs / self.name

    @property
    def source(self) -> str:
        """The model to shear."""
        return self.given_source or str(self.run / "source")

    def recipe(self, name: str) -> Path:
        """The file of a recipe, from the repository's root."""
        return Path("yamls") / self.name / f"{name}.yaml"

    def script(self, name: str, *arguments: str | Path) -> list[str]:
        """A script of ``data_prep``."""
        return [sys.executable, f"data_prep/{name}.py", *map(str, arguments)]

    def module(self, name: str, *arguments: str | Path) -> list[str]:
        """A command of the package."""
        return [sys.executable, "-m", name, *map(str, arguments)]

    def train(self, recipe: str, stage: str, overrides: Sequence[str] = ()) -> list[str]:
        """Train by a recipe, in the folder of a stage."""
        composer = str(Path(sys.executable).with_name("composer"))
        command = [composer, "-n", str(self.num_processes), "-m", "llmshearing.train", str(self.recipe(recipe))]
        return [*command, f"variables.run={self.stage(stage)}", *overrides]

    def convert(self, command: str, stage: str, out: str, *options: str | Path) -> list[str]:
        """``shear`` or ``export`` the checkpoint that a stage ended with."""
        checkpoint = self.stage(stage) / "checkpoints" / "latest-rank0.pt"
        return self.module("llmshearing.convert", command, checkpoint, self.run / out, *options, "--overwrite")

    def evaluate(self, model: str) -> list[str]:
        """Losses of a model by domain."""
        name = self.source if model == "source" else self.run / model
        command = self.module("llmshearing.reference_loss", "eval", name, self.run / "data", *self.measured)
        return [*command, "--out", str(self.losses(model))]

    @property
    def measured(self) -> list[str]:
        """The option for :attr:`dtype`."""
        return ["--dtype", self.dtype]

    def make(
        self, to: str, recipe: str, *, by: str, stage: str | None = None, overrides: Sequence[str] = ()
    ) -> list[list[str]]:
        """Train by a recipe, in the folder of its name or of ``stage``, then ``shear`` or ``export``, then evaluate."""
        stage = stage or recipe
        return [self.train(recipe, stage, overrides), self.convert(by, stage, to), self.evaluate(to)]

    def stage(self, name: str) -> Path:
        """The run folder of a stage's training."""
        return self.run / "stages" / name

    def losses(self, model: str) -> Path:
        """Where :meth:`evaluate` writes."""
        return self.run / "losses" / f"{model}.json"

    def corpus(self) -> Stage:
        """The text, of which every way is made."""
        out = self.run / "corpus"
        return Stage("corpus", "gather real text", [self.script("demo_corpus", out)], [out])

    def prepare(self, tokenizer: str | Path, *, eval_sequences: int) -> Stage:
        """The data."""
        out = self.run / "data"
        options = ["--seq-len", str(SEQ_LEN), "--eval-sequences", str(eval_sequences), "--workers", "2"]
        command = self.script("prepare", self.run / "corpus", out, "--tokenizer", tokenizer, *options)
        return Stage("data", "tokenize, pack and split", [command], [out])

    def training(self, name: str, title: str, commands: Sequence[Sequence[str]], *, models: Sequence[str]) -> Stage:
        """A stage that trains by the recipe of its name, and leaves models."""
        outputs = [self.stage(name), *(self.run / model for model in models), *map(self.losses, models)]
        return Stage(name, title, commands, outputs, [ROOT / self.recipe(name)])


@dataclass(frozen=True)
class Way:
    """One way through the method.

    Args:
        commands: that it runs.
        stages: in order.
        models: the source and what becomes of it, in order.
        trainings: folders below ``stages``, in order.
        control: what the model of that name is.
        looked_at: tokens of stages that read text without training on it.
    """

    commands: Commands
    stages: Sequence[Stage]
    models: Sequence[str]
    trainings: Sequence[str]
    control: str
    looked_at: Mapping[str, int] = field(default_factory=dict)
