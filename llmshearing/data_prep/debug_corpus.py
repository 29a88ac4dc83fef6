"""``python data_prep/debug_corpus.py OUT``: a tiny corpus of two domains from the running Python, without downloads.

``code`` is the source of some of its modules, ``manual`` its built-in help. Enough to see that everything runs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from pydoc_data.topics import topics

from llmshearing.data_prep.demo_corpus import standard_library
from llmshearing.errors import cli
from llmshearing.fileio import write_text

NUM_MODULES = 60


def write_corpus(out: Path) -> None:
    """Write ``out/<domain>/<domain>.jsonl``, one ``{"text"}`` per line."""
    domains: dict[str, Iterable[str]] = {
        "code": (text for _, text in islice(standard_library(), NUM_MODULES)),
        "manual": topics.values(),
    }
    for domain, texts in domains.items():
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts if text.strip())
        write_text(out / domain / f"{domain}.jsonl", "".join(lines))


@cli
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    write_corpus(parser.parse_args(arguments).out)


if __name__ == "__main__":
    main()
