"""``python -m llmshearing.choose_shape MODEL --parameters N``: the shapes within a budget, and which to take.

Give one budget: ``--parameters 1.3e9``; ``--memory 4GB`` for weights and the cache of a sequence in bfloat16;
``--speed 2x``, as less arithmetic for a token; or ``--like MODEL``, the parameters of another one.

Candidates are ranked by what the cut costs. With ``--scores`` (what ``llmshearing.score`` wrote) that is a first guess
from what units carry; with ``--data`` the best few are cut and fitted, and ranked by their loss right after it. Score
and cut a model after ``convert rotate``: before it all hidden dimensions carry about as much.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Any

from llmshearing.errors import InputError, cli
from llmshearing.fileio import check_file_can_be_written, give_json
from llmshearing.following import say_next

log = logging.getLogger(__name__)

_COLUMNS = (
    ("layers", "num_hidden_layers", "d"),
    ("hidden", "hidden_size", "d"),
    ("neurons", "intermediate_size", "d"),
    ("heads", "num_attention_heads", "d"),
    ("KV heads", "num_key_value_heads", "d"),
    ("parameters", "num_parameters", ",d"),
    ("cache/token", "cache_bytes_per_token", ",d"),
    ("MFLOP/token", "flops_per_token", ",.0f"),
    ("guessed cost", "guessed_cost", ".3f"),
    ("fitted loss", "fitted_loss", ".3f"),
    ("tokens/s", "tokens_per_s", ",.1f"),
)


def table(found: dict[str, Any]) -> str:
    """The candidates, the source first, as text."""
    rows = [found["source"], *found["candidates"]]
    columns = [column for column in _COLUMNS if any(row.get(column[1]) is not None for row in rows)]
    cells = [["", *(title for title, _, _ in columns)]]
    for number, row in enumerate(rows):
        values = [(row.get(key), form) for _, key, form in columns]
        shown = ["" if value is None else format(value, form) for value, form in values]
        cells.append([str(number) if number else "source", *shown])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


@cli
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, choose, and print."""
    parser = argparse.ArgumentParser(
        prog="python -m llmshearing.choose_shape",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="Hugging Face folder or hub id")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--parameters", metavar="N", help="such as 1.3e9 or 1.3B; within 2%%")
    budget.add_argument("--memory", metavar="SIZE", help="such as 4GB; at most")
    budget.add_argument("--speed", metavar="RATIO", help="such as 2x; at least, by arithmetic")
    budget.add_argument("--like", metavar="MODEL", help="as many parameters as this one")
    parser.add_argument("--context", type=int, default=2048, help="tokens of a sequence that is served (default: 2048)")
    parser.add_argument("--scores", metavar="FILE", help="what llmshearing.score wrote of MODEL")
    parser.add_argument(
        "--data", metavar="DATA", help="prepared data: score MODEL if need be, cut and fit the best few"
    )
    parser.add_argument("--sequences", type=int, default=32, help="of the data to fit on (default: 32)")
    parser.add_argument("--best", type=int, default=4, help="how many to fit and to time (default: 4)")
    parser.add_argument("--show", type=int, default=10, help="how many to print (default: 10)")
    parser.add_argument("--time", action="store_true", help="time generation of the best few on this machine")
    parser.add_argument(
        "--json", metavar="FILE", nargs="?", const="-", help="write JSON, to stdout if no FILE is given"
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.json not in (None, "-"):
        check_file_can_be_written(arguments.json)
    for name in ("best", "show", "context"):
        if getattr(arguments, name) < 1:
            raise InputError(f"--{name} is {getattr(arguments, name)}; it must be 1 or more.")

    from llmshearing.choose_shape.choose import choose  # imports torch and transformers, which takes seconds

    found = choose(
        arguments.model,
        parameters=arguments.parameters,
        memory=arguments.memory,
        speed=arguments.speed,
        like=arguments.like,
        context=arguments.context,
        scores=arguments.scores,
        data=arguments.data,
        num_sequences=arguments.sequences,
        best=arguments.best,
        show=arguments.show,
        timed=arguments.time,
    )
    for warning in found["warnings"]:
        log.warning("%s", warning)
    if "guessed_cost" not in found["candidates"][0]:
        log.warning(
            "Nothing is known of the units, so the evenest cut comes first. Give --data, or --scores, to rank by what "
            "a cut costs."
        )
    if arguments.json is not None:
        give_json(None if arguments.json == "-" else arguments.json, found)
    if arguments.json != "-":
        sizes = " ".join(f"{name}={size}" for name, size in found["candidates"][0]["target"].items())
        sys.stdout.write(f"{table(found)}\n\nThe first one: --target {sizes}\n")
        rest = f"--target {sizes} --tokens TOKENS --run runs/mine --out my"
        data = arguments.data or "DATA"
        say_next(f"python -m llmshearing.new_recipe {{model}} --data {{data}} {rest}", model=arguments.model, data=data)


if __name__ == "__main__":
    main()
