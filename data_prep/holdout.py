"""Which documents are held out for evaluation: chosen by the hash of their text, before anything is packed.

A domain's documents are ordered by the hash of their text, and the first ones, until they fill the sequences asked for,
are its eval documents. The choice depends on nothing but the texts: not on file names, order or workers. Equal texts
have equal hashes, so an exact duplicate of an eval document can never be trained on, whatever file or domain it is in.

64 bits are enough: texts that differ but share a hash only cost the training split a document.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.readers import SourceFile
from data_prep.tokenize_file import RECORD, read_index
from llmshearing.errors import InputError


def smallest_hashes(records: Iterable[NDArray[np.void]], *, num_tokens: int, extra: int) -> NDArray[np.void]:
    """The documents of smallest hash that together fill ``num_tokens``.

    Args:
        records: the domain's index, in pieces of any length of dtype ``RECORD``.
        num_tokens: tokens to fill, BOS and EOS included.
        extra: tokens that packing adds to each document (BOS, EOS).

    Returns:
        the chosen records, one per distinct text, in order of their hashes. They hold fewer than ``num_tokens`` tokens
        only if the whole domain does.
    """
    chosen = np.empty(0, RECORD)
    for piece in records:
        pool = np.concatenate([chosen, piece])
        _, first = np.unique(pool["hash"], return_index=True)  # sorted by hash, each text once
        pool = pool[first]
        filled = np.cumsum(pool["tokens"] + np.uint64(extra))
        # Every document before the one that completes the fill, and that one.
        chosen = pool[: int(np.searchsorted(filled, num_tokens)) + 1]
    return chosen


def hold_out(domain: str, files: Sequence[SourceFile], *, work: Path, num_tokens: int, extra: int) -> frozenset[int]:
    """Hashes of the eval documents of a tokenized domain; see :func:`smallest_hashes`.

    Raises:
        InputError: the domain has fewer than ``num_tokens`` tokens.
    """
    records = itertools.chain.from_iterable(read_index(work, file) for file in files)
    chosen = smallest_hashes(records, num_tokens=num_tokens, extra=extra)
    filled = int(chosen["tokens"].sum()) + len(chosen) * extra
    if filled < num_tokens:
        raise InputError(
            f"Domain '{domain}' is too small: its {len(chosen)} different documents have {filled:,} tokens, and the "
            f"eval sequences alone need {num_tokens:,}. Lower --eval-sequences or --seq-len, or add documents."
        )
    return frozenset(chosen["hash"].tolist())
