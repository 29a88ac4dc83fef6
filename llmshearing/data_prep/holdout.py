"""Which documents are held out for evaluation: chosen by the hash of their text, before anything is packed.

A domain's documents are ordered by the hash of their text, and the first ones, until they fill the sequences asked for,
are its eval documents, packed in that order. Which tokens are evaluated depends on nothing but the texts: not on file
names, order or workers. Equal texts have equal hashes, so an exact duplicate of an eval document can never be trained
on, whatever file or domain it is in.

A document is held out whole, but gives at most half of the eval tokens: one that alone is longer than the eval split
would otherwise be all of it where its hash happens to be small. Only where that would hold out too much more, as in a
domain of three novels, may one document be all there is; that is logged.

No process reads all of a domain's index: what a part could give to the choice, its own documents of smallest hash until
they fill the eval split, is written by whoever has tokenized it, and the choice is made of these.

64 bits are enough: texts that differ but share a hash only cost the training split a document.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmshearing import storage
from llmshearing.data_prep.corpus import SourceFile
from llmshearing.data_prep.tokenize_file import RECORD, TokenizedFile, read_index
from llmshearing.data_prep.work import read_array, write_array
from llmshearing.errors import InputError
from llmshearing.storage import Place, join

log = logging.getLogger(__name__)

#: What one document may give of an eval split ...
LARGEST_SHARE = 0.5
#: ... unless documents in its stead would hold out more than this share of the domain in addition.
LARGEST_COST = 0.1


@dataclass(frozen=True)
class EvalDocuments:
    """The documents of a domain's eval split.

    Attributes:
        hashes: of their texts, in the order in which they are packed.
        limit: how many of its first tokens each document gives at most, without BOS and EOS.
    """

    hashes: tuple[int, ...]
    limit: int


def smallest_hashes(
    records: Iterable[NDArray[np.void]], *, num_tokens: int, extra: int, limit: int
) -> NDArray[np.void]:
    """The documents of smallest hash that together fill ``num_tokens``.

    Args:
        records: the domain's index, in pieces of any length of dtype ``RECORD``.
        num_tokens: tokens to fill, BOS and EOS included.
        extra: tokens that packing adds to each document (BOS, EOS).
        limit: tokens that each document gives at most.

    Returns:
        the chosen records, one per distinct text, in order of their hashes. They hold fewer than ``num_tokens`` tokens
        only if the whole domain does.
    """
    chosen = np.empty(0, RECORD)
    for piece in records:
        pool = np.concatenate([chosen, piece])
        _, first = np.unique(pool["hash"], return_index=True)  # sorted by hash, each text once
        pool = pool[first]
        filled = np.cumsum(_given(pool, extra, limit))
        # Every document before the one that completes the fill, and that one.
        chosen = pool[: int(np.searchsorted(filled, num_tokens)) + 1]
    return chosen


def half_limit(num_tokens: int, extra: int) -> int:
    """What one document may give of an eval split of ``num_tokens``, without BOS and EOS."""
    return max(int(num_tokens * LARGEST_SHARE) - extra, 1)


def prefix_path(work: Place, file: SourceFile, part: TokenizedFile, *, num_tokens: int, extra: int) -> str:
    """Where the documents are that a part could give to an eval split of ``num_tokens``."""
    made_of = hashlib.blake2b(repr((part, num_tokens, extra)).encode(), digest_size=8).hexdigest()
    return join(work, "prefixes", f"{file.key}.{made_of}")


def write_prefix(work: Place, file: SourceFile, part: TokenizedFile, *, num_tokens: int, extra: int) -> None:
    """Write the part's documents of smallest hash, from which :func:`hold_out` chooses, unless an earlier run has.

    Of documents that give at most half of the split, more are needed than of whole ones: these are among them.
    """
    place = prefix_path(work, file, part, num_tokens=num_tokens, extra=extra)
    if storage.info(place) is None:
        limit = half_limit(num_tokens, extra)
        write_array(
            work, place, smallest_hashes(read_index(work, file), num_tokens=num_tokens, extra=extra, limit=limit)
        )


def read_prefixes(
    work: Place, parts: Iterable[tuple[SourceFile, TokenizedFile]], *, num_tokens: int, extra: int
) -> Iterable[NDArray[np.void]]:
    """What :func:`write_prefix` wrote of each part."""
    for file, part in parts:
        yield read_array(prefix_path(work, file, part, num_tokens=num_tokens, extra=extra), RECORD)


def hold_out(
    domain: str,
    prefixes: Callable[[], Iterable[NDArray[np.void]]],
    *,
    domain_tokens: int,
    num_tokens: int,
    extra: int,
) -> EvalDocuments:
    """The eval documents of a domain, which fill ``num_tokens``; see :func:`smallest_hashes`.

    Args:
        domain: its name.
        prefixes: gives the parts' documents of smallest hash, in the order of the parts.
        domain_tokens: tokens of the whole domain.
        num_tokens: tokens to fill, BOS and EOS included.
        extra: tokens that packing adds to each document.

    Raises:
        InputError: the domain has fewer than ``num_tokens`` tokens.
    """

    def choose(limit: int) -> NDArray[np.void]:
        return smallest_hashes(prefixes(), num_tokens=num_tokens, extra=extra, limit=limit)

    limit = num_tokens
    chosen = choose(limit)
    filled = int(_given(chosen, extra, limit).sum())
    if filled < num_tokens:
        raise InputError(
            f"Domain '{domain}' is too small: its {len(chosen)} different documents have {filled:,} tokens, and the "
            f"eval sequences alone need {num_tokens:,}. Lower --eval-sequences or --seq-len, or add documents."
        )
    half = half_limit(num_tokens, extra)
    mixed = choose(half)
    added = int(mixed["tokens"].sum()) - int(chosen["tokens"].sum())
    if int(_given(mixed, extra, half).sum()) >= num_tokens and added <= LARGEST_COST * domain_tokens:
        chosen, limit = mixed, half
    ends = np.minimum(np.cumsum(_given(chosen, extra, limit)), num_tokens)
    largest = int(np.diff(ends, prepend=np.uint64(0)).max()) / num_tokens
    if largest > LARGEST_SHARE:
        log.warning(
            "Domain '%s': one document gives %.0f%% of its eval tokens, since a document is held out whole and there "
            "are few. Split its documents, or add some.",
            domain,
            100 * largest,
        )
    return EvalDocuments(tuple(chosen["hash"].tolist()), limit)


def _given(records: NDArray[np.void], extra: int, limit: int) -> NDArray[np.uint64]:
    return np.minimum(records["tokens"], np.uint64(limit)) + np.uint64(extra)
