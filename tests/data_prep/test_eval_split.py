"""Which tokens are evaluated."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streaming import LocalDataset

from llmshearing.data_prep.prepare import prepare
from llmshearing.data_prep.tokenize_file import text_hash
from llmshearing.data_prep.tokenizer import Tokenizer

WriteJsonl = Callable[..., Path]
SEQ_LEN = 64
EVAL_SEQUENCES = 3


def evaluated(corpus: Path, out: Path, tokenizer: Tokenizer) -> tuple[list[int], dict[str, Any]]:
    """The eval split of the domain "code", end to end, and its counts."""
    manifest = prepare(corpus, out, tokenizer=tokenizer, seq_len=SEQ_LEN, eval_sequences=EVAL_SEQUENCES)
    dataset = LocalDataset(local=str(out / "eval" / "code"))
    tokens = np.concatenate([dataset[index]["tokens"] for index in range(len(dataset))])
    return tokens.tolist(), manifest["domains"]["code"]["eval"]


def long_text_before(texts: list[str], rank: int) -> str:
    """A text longer than the eval split, whose hash is the smallest but ``rank`` among those of ``texts``."""
    hashes = [0, *sorted(map(text_hash, texts))]
    candidates = ("\n".join(texts[:10]) + str(number) for number in itertools.count())
    return next(text for text in candidates if hashes[rank] < text_hash(text) < hashes[rank + 1])


@pytest.mark.parametrize("rank", [0, 1])
def test_what_is_evaluated_depends_on_the_texts_alone(
    rank: int, tmp_path: Path, tokenizer: Tokenizer, texts: list[str], write_jsonl: WriteJsonl
) -> None:
    """Not on names, number and order of files, nor on where in them a long document is."""
    long = long_text_before(texts, rank)
    files = {
        "one": {"a": [long, *texts]},
        "two": {"x": [*reversed(texts), long]},
        "three": {"1": texts[500:], "2": [long], "3": texts[:500]},
    }
    streams = []
    for name, members in files.items():
        for file, documents in members.items():
            write_jsonl(tmp_path / name / "code" / f"{file}.jsonl", documents)
        streams.append(evaluated(tmp_path / name, tmp_path / f"{name}.out", tokenizer)[0])
    assert streams[0] == streams[1] == streams[2]


def test_an_eval_split_is_not_one_long_document(
    tmp_path: Path, tokenizer: Tokenizer, texts: list[str], write_jsonl: WriteJsonl
) -> None:
    long = long_text_before(texts, 0)
    write_jsonl(tmp_path / "corpus" / "code" / "a.jsonl", [*texts, long])
    tokens, counts = evaluated(tmp_path / "corpus", tmp_path / "out", tokenizer)
    first, second = tokenizer.encoder.encode([long, min(texts, key=text_hash)])
    half = EVAL_SEQUENCES * SEQ_LEN // 2
    expected = [1, *first[: half - 2], 2, 1, *second[: half - 2], 2]
    assert tokens[: len(expected)] == expected
    packed = EVAL_SEQUENCES * SEQ_LEN + counts["dropped_tail_tokens"]
    assert counts["tokens"] + 2 * counts["documents"] == packed
