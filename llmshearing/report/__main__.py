"""Command line: ``python -m llmshearing.report RUN_DIR``, or ``python -m llmshearing.report compute RUN_DIR ...``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from llmshearing.copies import fetch, local_copy
from llmshearing.errors import cli
from llmshearing.fileio import check_file_can_be_written, give_json, write_text
from llmshearing.report.collect import collect, is_record
from llmshearing.report.compute import as_json, as_text, compute
from llmshearing.report.page import render
from llmshearing.storage import is_remote, join, upload

_PAGE = "report.html"
_fetch_records = partial(fetch, wanted=is_record)


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
    parser.add_argument("folder", metavar="RUN_DIR", help="folder, or its address, that holds metrics.jsonl or stages/")
    place: str = parser.parse_args(given).folder
    with local_copy(place, fetching=_fetch_records) as folder:
        run = collect(folder)
        if folder == Path(place):
            check_file_can_be_written(folder / _PAGE)
        write_text(folder / _PAGE, render(run))
        if is_remote(place):
            upload(folder / _PAGE, join(place, _PAGE))
    sys.stdout.write(f"{join(place, _PAGE) if is_remote(place) else folder / _PAGE}\n")


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
    with ExitStack() as copies:
        here = {
            place: str(copies.enter_context(local_copy(place, fetching=_fetch_records))) for place in arguments.folders
        }
        against = arguments.against
        if is_remote(against or ""):
            # In the copy of a run that it lies in, so that it is known for a part of that.
            above = next((place for place in here if join(against, "").startswith(join(place, ""))), None)
            if above is None:
                against = str(copies.enter_context(local_copy(against, fetching=_fetch_records)))
            else:
                against = join(here[above], against[len(above) :].strip("/")).rstrip("/")
        found = compute(list(here.values()), against=against, without=arguments.without)
    if arguments.json:
        give_json(None, as_json(found))
    else:
        sys.stdout.write(as_text(found))


if __name__ == "__main__":
    main()
