"""Command line: ``python -m llmshearing.report RUN_DIR``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llmshearing.errors import cli
from llmshearing.fileio import check_file_can_be_written, write_text
from llmshearing.report.collect import collect
from llmshearing.report.page import render


@cli
def main(argv: Sequence[str] | None = None) -> None:
    """Write ``RUN_DIR/report.html`` and its path to stdout."""
    parser = argparse.ArgumentParser(prog="python -m llmshearing.report", description="Draw a run as one HTML file.")
    parser.add_argument("folder", metavar="RUN_DIR", type=Path, help="folder that holds metrics.jsonl or stages/")
    folder: Path = parser.parse_args(argv).folder
    page = folder / "report.html"
    run = collect(folder)
    check_file_can_be_written(page)
    write_text(page, render(run))
    sys.stdout.write(f"{page}\n")


if __name__ == "__main__":
    main()
