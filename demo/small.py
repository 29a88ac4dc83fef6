"""``make demo WAY=small``: everything from text on, with a source model that it trains itself.

Trains a tokenizer and a source of 6 M parameters, shears it to half in every dimension while masks are learned, trains
it further, and compares it with a control of the same shape and budget from random weights.
"""

from __future__ import annotations

from demo.commands import Commands, Way
from demo.stages import Stage


def make(commands: Commands) -> Way:
    """The way, with paths relative to the repository."""
    run = commands.run
    tokenizer = run / "tokenizer"

    def training(name: str, title: str, *, convert_by: str, to: str) -> Stage:
        return commands.training(name, title, commands.make(to, name, by=convert_by), models=[to])

    train_tokenizer = commands.script("train_tokenizer", run / "corpus", tokenizer, "--vocab-size", "4096")
    stages = [
        commands.corpus(),
        Stage("tokenizer", "train a tokenizer", [train_tokenizer], [tokenizer]),
        commands.prepare(tokenizer, eval_sequences=32),
        training("source", "pre-train a source, and take reference losses from it", convert_by="export", to="source"),
        training("prune", "prune it to half of every dimension, and shear it", convert_by="shear", to="sheared"),
        training("continue", "train the sheared model further", convert_by="export", to="final"),
        training("control", "train the same shape from random weights", convert_by="export", to="control"),
    ]
    return Way(
        commands,
        stages,
        models=("source", "sheared", "final", "control"),
        trainings=("source", "prune", "continue", "control"),
        control="the same shape from random weights",
    )
