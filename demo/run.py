"""The whole method on a small real model: ``python -m demo.run`` (or ``make demo``).

Gathers real text of five domains, trains a small source model, shears it to half in every dimension, trains it
further, and compares it with a control of the same shape and budget from random weights. Everything goes to
``runs/demo``; a second call reuses what is finished.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from demo.stages import Stage, run_stages
from demo.summary import write_summary
from llmshearing.errors import cli

ROOT = Path(__file__).resolve().parents[1]
RUN = Path("runs/demo")
MODELS = ("source", "sheared", "final", "control")


def stages(*, num_processes: int) -> list[Stage]:
    """The demo's steps, with paths relative to the repository."""
    python = sys.executable
    corpus, tokenizer, data = str(RUN / "corpus"), str(RUN / "tokenizer"), str(RUN / "data")

    def train(name: str) -> list[str]:
        recipe = f"yamls/demo/{name}.yaml"
        return [str(Path(python).with_name("composer")), "-n", str(num_processes), "-m", "llmshearing.train", recipe]

    def convert(command: str, stage: str, out: str) -> list[str]:
        checkpoint = str(RUN / "stages" / stage / "checkpoints" / "latest-rank0.pt")
        return [python, "-m", "llmshearing.convert", command, checkpoint, str(RUN / out), "--overwrite"]

    def evaluate(model: str) -> list[str]:
        return [python, "-m", "llmshearing.reference_loss", "eval", str(RUN / model), data, "--out", _losses(model)]

    def training(name: str, title: str, *, convert_by: str, to: str) -> Stage:
        return Stage(
            name,
            title,
            [train(name), convert(convert_by, name, to), evaluate(to)],
            [RUN / "stages" / name, RUN / to, Path(_losses(to))],
            [ROOT / "yamls" / "demo" / f"{name}.yaml"],
        )

    prepare = [python, "data_prep/prepare.py", corpus, data, "--tokenizer", tokenizer, "--seq-len", "256"]
    return [
        Stage("corpus", "gather real text", [[python, "data_prep/demo_corpus.py", corpus]], [RUN / "corpus"]),
        Stage(
            "tokenizer",
            "train a tokenizer",
            [[python, "data_prep/train_tokenizer.py", corpus, tokenizer, "--vocab-size", "4096"]],
            [RUN / "tokenizer"],
        ),
        Stage(
            "data",
            "tokenize, pack and split",
            [[*prepare, "--eval-sequences", "32", "--workers", "2"]],
            [RUN / "data"],
        ),
        training(
            "source", "pre-train the source model, and take reference losses from it", convert_by="export", to="source"
        ),
        training("prune", "prune it to half of every dimension, and shear it", convert_by="shear", to="sheared"),
        training("continue", "train the sheared model further", convert_by="export", to="final"),
        training("control", "train the same shape from random weights", convert_by="export", to="control"),
    ]


def _losses(model: str) -> str:
    return str(RUN / "losses" / f"{model}.json")


@cli
def main() -> None:
    """Run the stages, then summarise."""
    parser = argparse.ArgumentParser(prog="python -m demo.run", description=__doc__.split("\n\n")[0])
    parser.add_argument("-n", type=int, default=1, metavar="N", help="training processes (default: 1)")
    arguments = parser.parse_args()
    wall_s = run_stages(stages(num_processes=arguments.n), ROOT / RUN / "records", root=ROOT)
    write_summary(ROOT / RUN, wall_s)


if __name__ == "__main__":
    main()
