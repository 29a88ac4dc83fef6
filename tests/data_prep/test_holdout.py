"""Which documents are held out."""

from __future__ import annotations

import numpy as np
import pytest

from data_prep.holdout import smallest_hashes
from data_prep.tokenize_file import RECORD, text_hash


def records(pairs: list[tuple[int, int]]) -> np.ndarray:
    return np.array(pairs, RECORD)


def test_documents_of_smallest_hash_until_they_fill() -> None:
    index = records([(50, 7), (10, 4), (30, 5), (20, 1), (40, 9)])
    assert smallest_hashes([index], num_tokens=5, extra=0)["hash"].tolist() == [10, 20]
    assert smallest_hashes([index], num_tokens=6, extra=0)["hash"].tolist() == [10, 20, 30]
    assert smallest_hashes([index], num_tokens=6, extra=2)["hash"].tolist() == [10]
    assert smallest_hashes([index], num_tokens=99, extra=0)["hash"].tolist() == [10, 20, 30, 40, 50]


def test_a_duplicate_fills_only_once() -> None:
    index = records([(10, 4), (10, 4), (20, 4), (10, 4), (30, 4)])
    assert smallest_hashes([index], num_tokens=8, extra=0)["hash"].tolist() == [10, 20]


@pytest.mark.parametrize("piece", [1, 3, 64, 5000])
def test_the_choice_does_not_depend_on_order_or_pieces(piece: int) -> None:
    generator = np.random.default_rng(piece)
    index = records([(int(h), int(n)) for h, n in generator.integers(1, 2000, (5000, 2))])
    index["tokens"] = index["hash"] % 97 + 1  # equal texts have equal lengths
    whole = smallest_hashes([index], num_tokens=3000, extra=2)
    generator.shuffle(index)
    pieces = [index[start : start + piece] for start in range(0, len(index), piece)]
    assert np.array_equal(smallest_hashes(pieces, num_tokens=3000, extra=2), whole)
    assert (whole["tokens"] + 2).sum() >= 3000 > (whole["tokens"] + 2)[:-1].sum()


def test_equal_texts_have_equal_hashes_and_others_differ(texts: list[str]) -> None:
    assert text_hash("Ça") == text_hash("C\u0327a".replace("C\u0327", "\u00c7"))
    assert text_hash("Ça") != text_hash("C\u0327a")  # not normalized: only exact duplicates are equal
    assert len({text_hash(text) for text in texts}) == len(texts)
