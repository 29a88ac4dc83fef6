"""``python -m llmshearing.convert {shear,export} CHECKPOINT OUT`` and ``rotate MODEL OUT --data DATA``."""

from __future__ import annotations

import argparse
import logging
from typing import Any, NoReturn

import torch

from llmshearing.convert.commands import export, shear
from llmshearing.errors import InputError, cli
from llmshearing.following import say_next
from llmshearing.storage import is_remote

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9}


def _num_bytes(text: str) -> int:
    number, unit = text[:-2], text[-2:].upper()
    try:
        size = int(float(number) * _UNITS[unit])
    except (KeyError, OverflowError, ValueError) as error:
        raise InputError(f"--max-shard-size is '{text}'; write it as 500MB or 5GB.") from error
    if size <= 0:
        raise InputError(f"--max-shard-size is '{text}'; it must be above 0.")
    return size


def read_sizes(sizes: list[str] | None) -> dict[str, Any] | None:
    if sizes is None:
        return None
    target: dict[str, Any] = {}
    for size in sizes:
        name, equals, value = size.partition("=")
        if not equals or not value.isdecimal() or name in target:
            raise InputError(f"--target has '{size}'; write each size once, as num_hidden_layers=24.")
        target[name] = int(value)
    return target


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the command."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise InputError(f"{message}. See {self.prog} --help.")


def _add_output(command: argparse.ArgumentParser, *, dtype: str) -> None:
    command.add_argument("out", help="folder to create")
    command.add_argument("--dtype", choices=_DTYPES, help=f"of the weights written (default: {dtype})")
    command.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")


def _rotate(arguments: argparse.Namespace) -> None:
    from llmshearing.convert.rotate import rotate  # transformers takes seconds to import; shear does without

    rotate(
        arguments.model,
        arguments.out,
        data=arguments.data,
        num_sequences=arguments.sequences,
        dtype=_DTYPES[arguments.dtype or "float32"],
        overwrite=arguments.overwrite,
    )


@cli
def main() -> None:
    """Parse the command line and convert."""
    parser = _Parser(prog="python -m llmshearing.convert", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("shear", "a pruning checkpoint to a Hugging Face folder of the target shape"),
        ("export", "a dense checkpoint to a Hugging Face folder"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            "checkpoint", help="Composer checkpoint, a file or the folder of a sharded one; or a model's folder"
        )
        _add_output(command, dtype="as in the checkpoint")
        command.add_argument("--max-shard-size", default="5GB", help="size of a safetensors file (default: 5GB)")
        if name == "shear":
            command.add_argument(
                "--scores", metavar="SCORES", help="what llmshearing.score wrote of the model (default: its masks)"
            )
            command.add_argument(
                "--target",
                nargs="+",
                metavar="SIZE",
                help="with --scores, such as hidden_size=2048 num_hidden_layers=24",
            )
            command.add_argument(
                "--fit", metavar="DATA", help="prepared data to fit the kept weights on (default: none)"
            )
            command.add_argument("--fit-sequences", type=int, default=64, help="how many of it (default: 64)")
    text = "a Hugging Face model to the same model, turned so that fewer hidden dimensions carry more"
    command = commands.add_parser("rotate", help=text, description=text)
    command.add_argument("model", help="Hugging Face folder or hub id")
    _add_output(command, dtype="float32")
    command.add_argument("--data", required=True, help="folder that data_prep/prepare.py wrote")
    command.add_argument("--sequences", type=int, default=128, help="how many of them to look at (default: 128)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if arguments.command == "rotate":
            _rotate(arguments)
            say_next("python -m llmshearing.score {out} SCORES --data {data}", out=arguments.out, data=arguments.data)
            return
        options: dict[str, Any] = {}
        if arguments.command == "shear":
            options = {"scores": arguments.scores, "target": read_sizes(arguments.target)}
            options |= {"fit": arguments.fit, "fit_sequences": arguments.fit_sequences}
        if options.get("fit") is None:
            torch.set_num_threads(1)  # memory sets the pace; threads would spin while they wait for a few MB
        convert = shear if arguments.command == "shear" else export
        convert(
            arguments.checkpoint,
            arguments.out,
            dtype=_DTYPES[arguments.dtype] if arguments.dtype else None,
            max_shard_bytes=_num_bytes(arguments.max_shard_size),
            overwrite=arguments.overwrite,
            **options,
        )
        after = {
            "shear": "composer -m llmshearing.train RECIPE variables.sheared={out}",
            "export": "python -m llmshearing.text_quality {out} --source MODEL --data DATA",
        }
        if is_remote(arguments.out):
            say_next(after[arguments.command] + "  # COPY: of {place}", out="COPY", place=arguments.out)
        else:
            say_next(after[arguments.command], out=arguments.out)
    except KeyboardInterrupt:  # said already; a traceback adds nothing
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
