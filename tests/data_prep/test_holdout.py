"""Which documents are held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmshearing.data_prep.corpus import SourceFile
from llmshearing.data_prep.holdout import (
    EvalDocuments,
    half_limit,
    hold_out,
    read_prefixes,
    smallest_hashes,
    write_prefix,
)
from llmshearing.data_prep.tokenize_file import RECORD, TokenizedFile, text_hash
from llmshearing.data_prep.work import part_path, write_array

WHOLE = 1 << 40


def records(pairs: list[tuple[int, int]]) -> np.ndarray:
    return np.array(pairs, RECORD)


def test_documents_of_smallest_hash_until_they_fill() -> None:
    index = records([(50, 7), (10, 4), (30, 5), (20, 1), (40, 9)])
    assert smallest_hashes([index], num_tokens=5, extra=0, limit=WHOLE)["hash"].tolist() == [10, 20]
    assert smallest_hashes([index], num_tokens=6, extra=0, limit=WHOLE)["hash"].tolist() == [10, 20, 30]
    assert smallest_hashes([index], num_tokens=6, extra=2, limit=WHOLE)["hash"].tolist() == [10]
    assert smallest_hashes([index], num_tokens=99, extra=0, limit=WHOLE)["hash"].tolist() == [10, 20, 30, 40, 50]
    assert smallest_hashes([index], num_tokens=8, extra=0, limit=3)["hash"].tolist() == [10, 20, 30, 40]


def chosen(work: Path, pairs: list[tuple[int, int]], *, num_tokens: int, extra: int = 0) -> EvalDocuments:
    """What is held out of a domain of one file."""
    index, options = records(pairs), {"num_tokens": num_tokens, "extra": extra}
    file, part = SourceFile("d", "a.jsonl", work), TokenizedFile(0, hash(tuple(pairs)), None, 0, 0, 0, 0, 0, None, None)
    write_array(work, part_path(work, file, ".index"), index)
    write_prefix(work, file, part, **options)
    total = int(index["tokens"].sum())
    return hold_out("d", lambda: read_prefixes(work, [(file, part)], **options), domain_tokens=total, **options)


def test_one_document_gives_at_most_half_of_the_eval_tokens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    others = [(hash_, 10) for hash_ in range(2, 100)]
    assert chosen(tmp_path, [*others, (1, 10_000)], num_tokens=40) == EvalDocuments((1, 2, 3), 20)
    assert chosen(tmp_path, [*others, (1, 10_000)], num_tokens=40, extra=2) == EvalDocuments((1, 2, 3), 18)
    assert chosen(tmp_path, [*others, (1, 10)], num_tokens=40) == EvalDocuments((1, 2, 3, 4), 20)
    assert not caplog.records


@pytest.mark.parametrize("pairs", [[(1, 500), (2, 500), (3, 500)], [(1, 500), (2, 3), (3, 4)]])
def test_where_others_cannot_give_the_rest_one_document_may_be_all(
    pairs: list[tuple[int, int]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert chosen(tmp_path, pairs, num_tokens=40).hashes == (1,)
    assert "Domain 'd': one document gives 100% of its eval tokens" in caplog.text


@pytest.mark.parametrize("longest", [40, 400, 4000])
@pytest.mark.parametrize("extra", [0, 2])
def test_the_parts_of_smallest_hash_are_enough_to_choose_from(longest: int, extra: int) -> None:
    """With documents that are long beside the eval split, few of a part or none may be chosen, or only some tokens."""
    generator = np.random.default_rng(longest + extra)
    sizes = generator.integers(1, longest, 700) ** generator.integers(1, 3, 700) % 5000 + 1
    index = records([(int(text), int(sizes[text])) for text in generator.integers(0, 700, 1000)])  # with duplicates
    options = {"domain_tokens": int(index["tokens"].sum()), "extra": extra}
    limited = []
    for num_tokens in (1, 50, 1000, 20_000):
        whole = hold_out("d", lambda: [index], num_tokens=num_tokens, **options)
        limited.append(whole.limit < num_tokens)
        limit = half_limit(num_tokens, extra)
        for parts in (2, 13, 400):
            prefixes = [
                smallest_hashes([piece], num_tokens=num_tokens, extra=extra, limit=limit)
                for piece in np.array_split(index, parts)
            ]
            assert hold_out("d", lambda: prefixes, num_tokens=num_tokens, **options) == whole  # noqa: B023
    assert any(limited)


def test_a_duplicate_fills_only_once() -> None:
    index = records([(10, 4), (10, 4), (20, 4), (10, 4), (30, 4)])
    assert smallest_hashes([index], num_tokens=8, extra=0, limit=WHOLE)["hash"].tolist() == [10, 20]


@pytest.mark.parametrize("piece", [1, 3, 64, 5000])
def test_the_choice_does_not_depend_on_order_or_pieces(piece: int) -> None:
    generator = np.random.default_rng(piece)
    index = records([(int(h), int(n)) for h, n in generator.integers(1, 2000, (5000, 2))])
    index["tokens"] = index["hash"] % 97 + 1  # equal texts have equal lengths
    whole = smallest_hashes([index], num_tokens=3000, extra=2, limit=WHOLE)
    generator.shuffle(index)
    pieces = [index[start : start + piece] for start in range(0, len(index), piece)]
    assert np.array_equal(smallest_hashes(pieces, num_tokens=3000, extra=2, limit=WHOLE), whole)
    assert (whole["tokens"] + 2).sum() >= 3000 > (whole["tokens"] + 2)[:-1].sum()


def test_equal_texts_have_equal_hashes_and_others_differ(texts: list[str]) -> None:
    assert text_hash("Ça") == text_hash("C\u0327a".replace("C\u0327", "\u00c7"))
    assert text_hash("Ça") != text_hash("C\u0327a")  # not normalized: only exact duplicates are equal
    assert len({text_hash(text) for text in texts}) == len(texts)
