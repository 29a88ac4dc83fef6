"""``python data_prep/filter_with_datatrove.py INPUT OUT``: quality filters and near-duplicates, before ``prepare.py``.

A recipe to change (``datatrove_steps``) rather than a tool: the filters, MinHash and the executors are those of
datatrove, which has others for Slurm and Ray. Of each folder ``INPUT/<domain>/``, in any format of ``prepare.py``,

1. documents that break Gopher's rules for prose are left out (code wants other filters);
2. of documents that share most of their 5-grams of words, one is kept;
3. ``OUT/<domain>/*.parquet`` is what ``prepare.py`` takes as ``INPUT/<domain>/``.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from llmshearing.data_prep.corpus import find_corpus
from llmshearing.errors import InputError, cli
from llmshearing.fileio import new_folder
from llmshearing.following import say_next


@cli
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path, metavar="INPUT", help="folder with one folder of documents per domain")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to create, the INPUT of prepare.py")
    parser.add_argument("--text-key", help="key or column of the text (default: as prepare.py)")
    parser.add_argument(
        "--tasks", type=int, default=8, help="pieces of a domain's work, at most its files (default: 8)"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    args = parser.parse_args(arguments)
    if find_spec("datatrove") is None:
        raise InputError("This recipe needs datatrove: pip install datatrove.")
    from llmshearing.data_prep.datatrove_steps import filter_domain

    domains = find_corpus(args.input)
    options = {"text_key": args.text_key, "tasks": args.tasks, "workers": args.workers}
    with new_folder(args.out) as out:
        for domain, files in domains.items():
            with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
                filter_domain(files, out / domain, Path(scratch), **options)
    say_next(
        "python data_prep/prepare.py {corpus} OUT --tokenizer MODEL --seq-len S --eval-sequences E", corpus=args.out
    )


if __name__ == "__main__":
    main()
