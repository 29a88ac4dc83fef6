"""A small corpus that has everything in it, a tokenizer that needs no training, and what is compared of an output."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmshearing import storage
from llmshearing.data_prep.prepare import prepare
from llmshearing.data_prep.tokenizer import Tokenizer
from llmshearing.fileio import files_below

#: Small enough that files have several parts and domains several shards; see ``small_pieces``.
PART_BYTES = 6000
SHARD_BYTES = 4096
#: Of the output before there were parts, engines and addresses; with streaming's shards, and with small ones.
EARLIER = "9d6d28d67ee554b92ea22c528d160746c4027c34c1793ccbc2d91a199e8a2bfe"
EARLIER_SMALL = "dcce88278b3db6bba4e16ab7ec3ccf5d9973407ba3cfe8b6e75371e15590be19"
OPTIONS = {"seq_len": 32, "eval_sequences": 12, "max_bad_share": 0.5}


class Characters:
    """A token per character."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[3 + ord(character) % 500 for character in text] for text in texts]


TOKENIZER = Tokenizer("characters", Characters(), 503, 1, 2, {})


def write_corpus(folder: Path) -> Path:
    """Three domains: copies within files, across them and across domains, bad and empty lines, a huge document."""
    generator = random.Random(0)
    words = [f"w{number}" for number in range(300)]
    texts = [" ".join(generator.choices(words, k=generator.randint(1, 40))) for _ in range(400)]
    lines = [json.dumps({"text": text}) for text in texts]
    files = {
        "code/a.jsonl": lines[:120] + lines[:10],
        "code/b.jsonl": [*lines[100:150], "", "broken", *lines[150:250], '{"text": 7}', '{"text": ""}', *lines[90:120]],
        "code/deep/c.json": lines[240:260],
        "copies/a.jsonl": lines[:80] * 2,
        "other/a.jsonl": lines[250:330],
        "other/huge.jsonl": ["oops", json.dumps({"text": "L" * 9000}), *lines[330:400], "[1]"],
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("\n".join(content) + "\n" * (name != "code/deep/c.json"), encoding="utf-8")
    (folder / "other" / "b.txt").write_text(texts[0] + "\n\nend", encoding="utf-8")
    return folder


def put(corpus: Path, address: str) -> str:
    """The corpus in an object store."""
    for path in files_below(corpus):
        storage.upload(path, storage.join(address, path.relative_to(corpus).as_posix()))
    return address


def run(corpus: str | Path, out: str | Path, **options: Any) -> dict[str, Any]:
    """Prepare the corpus."""
    return prepare(corpus, out, **{"tokenizer": TOKENIZER, **OPTIONS, **options})


def content(out: str | Path) -> dict[str, bytes]:
    """All that was written, without the times of the input files."""
    files = {name: storage.read_bytes(storage.join(out, name)) for name in storage.files_below(out)}
    record = json.loads(files.pop("input.json"))
    assert {name: list(members) for name, members in record.items()} == {
        "code": ["a.jsonl", "b.jsonl", "deep/c.json"],
        "copies": ["a.jsonl"],
        "other": ["a.jsonl", "b.txt", "huge.jsonl"],
    }
    return files


def digest(out: str | Path) -> str:
    """SHA-256 over the names and contents of :func:`content`."""
    total = hashlib.sha256()
    for name, data in content(out).items():
        total.update(f"{name} {hashlib.sha256(data).hexdigest()}\n".encode())
    return total.hexdigest()
