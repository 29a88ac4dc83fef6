"""``python -m llmshearing.new_recipe MODEL --data DATA --parameters N --tokens T --out my``: both recipes for a budget.

Writes ``my/prune.yaml`` and ``my/continue.yaml``, complete and commented, and prints the commands that follow. With
many tokens for each parameter masks are learned, as in the paper; with fewer, units are chosen by scores, what is left
is fitted, and the source teaches. ``python -m llmshearing.choose_shape`` finds a target that costs little.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from typing import Any

from llmshearing.convert.__main__ import read_sizes
from llmshearing.errors import InputError, cli


def _target(words: list[str] | None) -> dict[str, Any] | None:
    if words is None or not words[0].startswith("{"):
        return read_sizes(words)
    text = " ".join(words)
    try:
        target = json.loads(text)
    except ValueError as error:
        raise InputError(f"--target is '{text}', which is not JSON: {error}.") from error
    if not isinstance(target, dict):
        raise InputError(f"--target is '{text}'; give sizes by name, such as num_hidden_layers=24.")
    return target


@cli
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, write, and print what to run."""
    parser = argparse.ArgumentParser(
        prog="python -m llmshearing.new_recipe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="Hugging Face folder or hub id of the model to shear")
    parser.add_argument("--data", required=True, metavar="DATA", help="folder that data_prep/prepare.py wrote")
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--parameters", metavar="N", help="of the sheared model, such as 1.3e9 or 1.3B; within 2%%")
    size.add_argument(
        "--target", metavar="SIZE", nargs="+", help="such as num_hidden_layers=24 hidden_size=2048; or JSON"
    )
    parser.add_argument("--tokens", required=True, metavar="T", help="to train on in all, such as 5e9 or 5B")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the recipes")
    parser.add_argument("--run", metavar="DIR", help="folder for what the runs write (default: runs/ and OUT's name)")
    parser.add_argument("--devices", type=int, metavar="N", help="GPUs, 0 for the CPU (default: this machine's)")
    parser.add_argument("--gpu-memory", default="80GB", metavar="SIZE", help="of each, with --devices (default: 80GB)")
    parser.add_argument("--masks", choices=("learned", "scored"), help="how units are chosen (default: by the budget)")
    parser.add_argument("--overwrite", action="store_true", help="replace recipes that are there")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    target = _target(arguments.target)

    from llmshearing.choose_shape.budget import read_amount  # these import torch and transformers, which takes seconds
    from llmshearing.new_recipe.job import commands
    from llmshearing.new_recipe.write import write_recipes

    job = write_recipes(
        arguments.model,
        arguments.out,
        data=arguments.data,
        tokens=read_amount("--tokens", arguments.tokens),
        parameters=arguments.parameters,
        target=target,
        run=arguments.run,
        devices=arguments.devices,
        gpu_memory=read_amount("--gpu-memory", arguments.gpu_memory, suffix="B"),
        learned=None if arguments.masks is None else arguments.masks == "learned",
        overwrite=arguments.overwrite,
    )
    sys.stdout.write("\n".join(["", *commands(job), ""]))


if __name__ == "__main__":
    main()
