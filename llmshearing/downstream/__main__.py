"""``python -m llmshearing.downstream MODEL ... --suite paper|quick|FILE``: what models are worth on downstream tasks.

EleutherAI's lm-eval (``pip install 'llmshearing[eval]'``) evaluates. The suites:

paper
    the eleven tasks of Table 2 of Sheared LLaMA, with its shots, and TruthfulQA
quick
    five of them, without shots
FILE
    YAML or JSON with tasks of lm-eval, files of questions and prepared data, see docs/downstream.md
FOLDER
    prepared data: questions made of its held-out text, for which nothing is fetched

Results are kept by model, by content, and task: the same command goes on where it was killed. Several GPUs:
``accelerate launch -m llmshearing.downstream ...`` shares out the questions, ``--parallelize`` one large model.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmshearing.downstream.evaluate import downstream
from llmshearing.downstream.table import markdown, published_rows
from llmshearing.errors import InputError, cli
from llmshearing.fileio import check_file_can_be_written, write_json
from llmshearing.following import say_next
from llmshearing.ranks import joined, rank

CACHE = "runs/downstream"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llmshearing.downstream",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", metavar="MODEL", nargs="+", help="Hugging Face folders or hub ids")
    parser.add_argument("--suite", required=True, help="paper, quick, a file or a folder of prepared data")
    parser.add_argument("--limit", metavar="N", type=int, help="questions of each task at most (default: all)")
    parser.add_argument(
        "--batch-size", metavar="N", help="sequences of a pass, or auto (default: auto on a GPU, 8 on a CPU)"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on a GPU, else float32")
    parser.add_argument("--parallelize", action="store_true", help="spread one model over the GPUs of this machine")
    parser.add_argument("--tokens", metavar="N", type=float, nargs="+", help="each model was trained on, for the table")
    parser.add_argument("--cache", default=CACHE, help=f"folder of results by model and task (default: {CACHE})")
    parser.add_argument("--out", help="write JSON here; as RUN/downstream.json the run's report shows it")
    return parser


@cli
def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see the module."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.out is not None:
        check_file_can_be_written(arguments.out)
    with joined():
        found = downstream(
            arguments.models,
            arguments.suite,
            limit=arguments.limit,
            batch_size=_batch_size(arguments.batch_size),
            dtype=arguments.dtype,
            parallelize=arguments.parallelize,
            tokens=arguments.tokens,
            cache=arguments.cache,
        )
        if rank() == 0:
            if arguments.out is not None:
                write_json(arguments.out, {**found, "published": published_rows(found["tasks"])})
            sys.stdout.write(markdown(found))
            if arguments.out is not None and Path(arguments.out).name == "downstream.json":
                say_next("python -m llmshearing.report {run}", run=Path(arguments.out).parent)


def _batch_size(given: str | None) -> Any:
    if given is None or given == "auto":
        return given
    try:
        return int(given)
    except ValueError as error:
        raise InputError(f"--batch-size is '{given}'; give a whole number, or auto.") from error


if __name__ == "__main__":
    main()
