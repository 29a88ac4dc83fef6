"""What commands that measure models have in common on the command line."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from llmshearing.fileio import check_file_can_be_written


def parse_measuring(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Add ``--dtype`` and ``--out``, parse, and find out before the work whether ``--out`` can be written.

    Raises:
        InputError: it cannot.
    """
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on a GPU, else float32")
    parser.add_argument("--out", help="write the JSON here instead of to stdout")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.out is not None:
        check_file_can_be_written(arguments.out)
    return arguments
