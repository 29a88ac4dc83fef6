"""The whole method on two CPU cores: ``python -m demo.run`` (or ``make demo``).

Three ways, each in a folder of its own below ``runs``:

real
    shears a real pre-trained model, SmolLM2-135M or that of ``--source``: cut, fit, train on with the source as teacher
paper
    shears it by masks that are learned while it trains, as in the paper
small
    trains its own source first, of 6 M parameters, and needs no pre-trained model

A second call reuses what is finished; a killed one goes on where it stopped.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from demo import real, small
from demo.commands import ROOT, Commands
from demo.stages import run_stages
from llmshearing.errors import InputError, cli

_DTYPES = {"real": "bfloat16", "paper": "bfloat16", "small": "float32"}  # a model of 135 M takes a third of the time
FOLDERS = {"real": "demo", "paper": "demo-paper", "small": "demo-small"}


@cli
def main() -> None:
    """Run the stages, then summarise."""
    parser = argparse.ArgumentParser(
        prog="python -m demo.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--way", default="real", help="real, paper or small (default: real)")
    parser.add_argument("--source", help="Hugging Face folder or hub id of the model to shear, instead of SmolLM2-135M")
    parser.add_argument("-n", type=int, default=1, metavar="N", help="training processes (default: 1)")
    arguments = parser.parse_args()
    if arguments.way not in FOLDERS:
        raise InputError(f"There is no way '{arguments.way}'. Choose one of {', '.join(FOLDERS)}.")
    commands = Commands(FOLDERS[arguments.way], arguments.n, _source(arguments.source), dtype=_DTYPES[arguments.way])
    if arguments.way == "small":
        if arguments.source is not None:
            raise InputError(f"The way 'small' trains its own source; '{arguments.source}' is for 'real' or 'paper'.")
        way = small.make(commands)
    else:
        way = real.make(commands, target=None if arguments.source is None else _target(commands.source))
    wall_s = run_stages(way.stages, ROOT / commands.run / "records", root=ROOT)

    from demo.summary import write_summary  # imports torch, whose memory the stages can use

    write_summary(way, wall_s)


def _source(given: str | None) -> str | None:
    """A folder by its whole path, since commands run in the repository's root."""
    return str(Path(given).resolve()) if given is not None and Path(given).exists() else given


def _target(source: str) -> dict[str, int]:
    from llmshearing.architecture.shapes import ModelShape  # these import transformers, which takes seconds
    from llmshearing.models.config import read_config

    logging.getLogger("transformers").setLevel(logging.ERROR)
    return real.target_for(ModelShape.from_hf_config(read_config(source)))


if __name__ == "__main__":
    main()
