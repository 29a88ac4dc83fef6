"""Real texts and small real tokenizers for the tests of data preparation."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from llmshearing.data_prep import claim, first_pass, prepare
from llmshearing.data_prep.demo_corpus import standard_library
from llmshearing.data_prep.tokenizer import Tokenizer, load_tokenizer
from llmshearing.data_prep.train_tokenizer import to_huggingface, train_sentencepiece
from tests.data_prep import same_bytes

WriteJsonl = Callable[..., Path]


@pytest.fixture(scope="session")
def unicode_texts() -> list[str]:
    """Texts that careless code gets wrong."""
    return [
        "Ça coûte 3\u202f€ — où ça ?",
        "\u041a\u0430\u0300\u0441\u043f\u0438\u0447\u0430\u043d",
        "人人生而自由",
        "👩\u200d👩\u200d👧 e\u0301 \u0000 \ufeff",
        "\n",
        "  \t two  spaces ",
    ]


@pytest.fixture(scope="session")
def write_jsonl() -> WriteJsonl:
    """A function that writes texts as JSON lines and returns the path."""

    def write(path: Path, texts: Iterable[str], *, key: str = "text") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({key: text}) + "\n" for text in texts), encoding="utf-8")
        return path

    return write


def paragraphs() -> Iterator[str]:
    """Endless different documents of real text of some dozens to hundreds of tokens."""
    for _, module in standard_library():
        yield from (paragraph for paragraph in module.split("\n\n") if len(paragraph) > 100)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """1000 different real texts."""
    return list(itertools.islice(dict.fromkeys(paragraphs()), 1000))


@pytest.fixture(scope="session")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    """A sentencepiece model of 600 tokens."""
    lines = (line for text in texts for line in text.split("\n") if line.strip())
    path = tmp_path_factory.mktemp("sentencepiece") / "small.model"
    path.write_bytes(train_sentencepiece(lines, vocab_size=600))
    return path


@pytest.fixture(scope="session")
def huggingface_folder(tmp_path_factory: pytest.TempPathFactory, sentencepiece_model: Path) -> Path:
    """The same tokenizer as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("huggingface")
    to_huggingface(sentencepiece_model.read_bytes()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(sentencepiece_model: Path) -> Tokenizer:
    """The small sentencepiece tokenizer, loaded."""
    return load_tokenizer(str(sentencepiece_model))


@pytest.fixture(scope="session")
def mixed_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus of :mod:`tests.data_prep.same_bytes`."""
    return same_bytes.write_corpus(tmp_path_factory.mktemp("mixed") / "corpus")


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of several parts, domains of several ranges of shards; known to the process that plans them alone."""
    monkeypatch.setattr(first_pass, "PART_BYTES", same_bytes.PART_BYTES)
    monkeypatch.setattr(prepare, "SHARD_BYTES", same_bytes.SHARD_BYTES)
    monkeypatch.setattr(claim, "SETTLING", 0.05)
