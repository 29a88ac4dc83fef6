"""Command line: ``python -m llmshearing.report RUN_DIR``, or ``python -m llmshearing.report compute RUN_DIR ...``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llmshearing.errors import cli
from llmshearing.fileio import check_file_can_be_written, give_json, write_text
from llmshearing.report.collect import collect
from llmshearing.report.compute import as_json, as_text, compute
from llmshearing.report.page import render


@cli
def main(argv: Sequence[str] | None = None) -> None:
    """Write ``RUN_DIR/report.html`` and its path to stdout, or what all stages computed."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["compute"]:
        _compute(given[1:])
        return
    parser = argparse.ArgumentParser(
        prog="python -m llmshearing.report",
        description="Draw a run as one HTML file.",
        epilog="`python -m llmshearing.report compute RUN_DIR ...` adds up what runs computed instead; see its --help.",
    )
    parser.add_argument("folder", metavar="RUN_DIR", type=Path, help="folder that holds metrics.jsonl or stages/")
    folder: Path = parser.parse_args(given).folder
    page = folder / "report.html"
    run = collect(folder)
    check_file_can_be_written(page)
    write_text(page, render(run))
    sys.stdout.write(f"{page}\n")


def _compute(given: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m llmshearing.report compute",
        description="Add up the floating-point operations of all stages, teacher, scores, fit and evaluations with "
        "them, and compare with what another run had done when it was at the same loss.",
    )
    parser.add_argument("folders", metavar="RUN_DIR", nargs="+", help="folders of the stages, or of all of them")
    parser.add_argument(
        "--against", metavar="RUN", help="another run of the same shape, by folder or stage: one from random weights"
    )
    parser.add_argument("--without", metavar="STAGE", nargs="+", default=[], help="names of stages that do not count")
    parser.add_argument("--json", action="store_true", help="write JSON instead")
    arguments = parser.parse_args(given)
    found = compute(arguments.folders, against=arguments.against, without=arguments.without)
    if arguments.json:
        give_json(None, as_json(found))
    else:
        sys.stdout.write(as_text(found))


if __name__ == "__main__":
    main()
