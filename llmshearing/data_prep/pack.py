"""Second pass: tokenized documents into sequences of fixed length, any range of a domain's shards on its own.

Documents are laid end to end, in ``train`` in the order of their files and lines, in ``eval`` in that of their hashes,
each with BOS and EOS as asked, and the stream is cut every ``seq_len`` tokens, through document and file boundaries.
What is left at the end of a split, less than one sequence in ``train``, and what held-out documents have too much in
``eval``, is dropped and counted.

All shards but the last have equally many sequences: which tokens of the stream a shard holds follows from its number.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmshearing import storage
from llmshearing.data_prep.corpus import SourceFile
from llmshearing.data_prep.count_part import FOUND, counted_path, read_eval_documents
from llmshearing.data_prep.mds import ShardFormat, shard_name
from llmshearing.data_prep.tokenize_file import read_index
from llmshearing.data_prep.work import new_files, part_path, read_array, read_elements
from llmshearing.storage import Place, join

log = logging.getLogger(__name__)

#: Above these shares of a domain's tokens, those in no sequence and those held out are worth a warning.
LARGE_DROPPED_SHARE = 0.05
LARGE_EVAL_SHARE = 0.2
#: Tokens that are read at a time, but for a longer document, which is read whole.
READ_TOKENS = 1 << 22


@dataclass(frozen=True)
class PackSettings:
    """How documents become sequences.

    Attributes:
        seq_len: tokens per sequence.
        token_type: ``uint16`` or ``uint32``.
        bos_id, eos_id: put before and after each document; None puts nothing.
        eval_sequences: sequences held out per domain.
    """

    seq_len: int
    token_type: str
    bos_id: int | None
    eos_id: int | None
    eval_sequences: int

    @property
    def extra(self) -> int:
        """Tokens added to each document."""
        return (self.bos_id is not None) + (self.eos_id is not None)


@dataclass
class SplitCounts:
    """What went into one split of one domain.

    ``tokens`` are those of its documents, without BOS and EOS, so that
    ``tokens + documents * extra == sequences * seq_len + dropped_tail_tokens``.
    """

    documents: int = 0
    tokens: int = 0
    sequences: int = 0
    dropped_tail_tokens: int = 0
    shards: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardRange:
    """Some shards of a domain's train split.

    Attributes:
        domain: name of the domain.
        first, last: the shards, without ``last``.
        begin, end: the tokens of the domain's stream that they hold.
        parts: the parts that these are in, each with the place of its first token in the stream.
    """

    domain: str
    first: int
    last: int
    begin: int
    end: int
    parts: tuple[tuple[SourceFile, int], ...]


def plan_shards(
    domain: str, parts: Sequence[tuple[SourceFile, int]], shards: ShardFormat, *, per_range: int
) -> list[ShardRange]:
    """Divide a domain's train split into ranges of ``per_range`` shards.

    Args:
        domain: its name.
        parts: its parts in order, with the number of tokens that each gives to the stream, BOS and EOS included.
        shards: format of the shards.
        per_range: shards of a range; the last may have fewer.
    """
    ends = np.cumsum([tokens for _, tokens in parts])
    starts = ends - [tokens for _, tokens in parts]
    sequences = int(ends[-1]) // shards.seq_len
    num_shards = -(-sequences // shards.rows)
    ranges = []
    for first in range(0, num_shards, per_range):
        last = min(first + per_range, num_shards)
        begin, end = (min(shard * shards.rows, sequences) * shards.seq_len for shard in (first, last))
        inside = np.flatnonzero((ends > begin) & (starts < end)).tolist()
        ranges.append(
            ShardRange(domain, first, last, begin, end, tuple((parts[at][0], int(starts[at])) for at in inside))
        )
    return ranges


def pack_shards(
    shards: ShardRange, *, work: Place, packed: Place, settings: PackSettings, shard_format: ShardFormat
) -> Iterator[dict[str, Any]]:
    """Write shards of ``packed/train/<domain>``; yields each one's entry for the index."""
    rows = np.empty((shard_format.rows, settings.seq_len), settings.token_type)
    filled, number = 0, shards.first
    left = shards.end - shards.begin
    for piece in _train_tokens(shards, work=work, packed=packed, settings=settings):
        while len(piece):
            wanted = min(rows.size, left)  # of the shard that is being filled
            taken = piece[: wanted - filled]
            rows.reshape(-1)[filled : filled + len(taken)] = taken
            filled += len(taken)
            piece = piece[len(taken) :]
            if filled == wanted:
                whole = rows[: filled // settings.seq_len]
                yield _write_shard(work, packed, "train", shards.domain, number, whole, shard_format)
                left -= filled
                filled, number = 0, number + 1
    assert left == 0, "the parts hold fewer tokens than were counted"


def pack_eval(
    domain: str,
    files: Sequence[SourceFile],
    *,
    work: Place,
    packed: Place,
    settings: PackSettings,
    shard_format: ShardFormat,
) -> tuple[SplitCounts, list[dict[str, Any]]]:
    """Write ``packed/eval/<domain>``, of which each text is part once; returns its counts and entries for the index."""
    chosen = read_eval_documents(packed, domain)
    counts = SplitCounts(documents=len(chosen.hashes))
    texts: dict[int, NDArray[np.integer]] = {}
    for file in files:
        found = read_array(counted_path(packed, file, ".found"), FOUND).tolist()
        here = [place for place in found if place[0] not in texts]  # else an earlier part has it
        if here:
            place = part_path(work, file, ".tokens")
            with storage.open_input(place) as source:
                for text, offset, tokens in here:
                    taken = min(tokens, chosen.limit)
                    texts[text] = read_elements(source, place, settings.token_type, offset, taken)
                    counts.tokens += tokens
                    counts.dropped_tail_tokens += tokens - taken
    laid = [texts[text] for text in chosen.hashes]
    stream = lay_out(np.concatenate(laid), np.array([len(text) for text in laid]), settings)
    counts.sequences = min(len(stream) // settings.seq_len, settings.eval_sequences)
    counts.dropped_tail_tokens += len(stream) - counts.sequences * settings.seq_len
    rows = stream[: counts.sequences * settings.seq_len].reshape(-1, settings.seq_len)
    entries = [
        _write_shard(work, packed, "eval", domain, number, rows[start : start + shard_format.rows], shard_format)
        for number, start in enumerate(range(0, len(rows), shard_format.rows))
    ]
    return counts, entries


def lay_out(tokens: NDArray[np.integer], lengths: NDArray[np.int64], settings: PackSettings) -> NDArray[np.integer]:
    """Documents end to end, each with its BOS and EOS: ``tokens`` holds those of all, ``lengths`` how many each has."""
    if settings.extra == 0:
        return tokens
    ends = np.cumsum(lengths + settings.extra)
    stream = np.empty(int(ends[-1]) if len(ends) else 0, tokens.dtype)
    is_text = np.ones(len(stream), bool)
    for token, places in ((settings.bos_id, ends - lengths - settings.extra), (settings.eos_id, ends - 1)):
        if token is not None:
            stream[places] = token
            is_text[places] = False
    stream[is_text] = tokens
    return stream


def _train_tokens(
    shards: ShardRange, *, work: Place, packed: Place, settings: PackSettings
) -> Iterator[NDArray[np.integer]]:
    """The tokens ``shards.begin`` to ``shards.end`` of the domain's stream, in pieces."""
    for file, position in shards.parts:
        place, kept_place = part_path(work, file, ".tokens"), counted_path(packed, file, ".kept")
        offset = row = 0
        with storage.open_input(place) as tokens, storage.open_input(kept_place) as flags:
            for piece in read_index(work, file):
                kept = read_elements(flags, kept_place, bool, row, len(piece))
                row += len(piece)
                sizes = piece["tokens"].astype(np.int64)
                ends = position + np.cumsum((sizes + settings.extra) * kept)
                # The documents from the first that ends in the range to the last that begins in it.
                first = int(np.searchsorted(ends, shards.begin, "right"))
                last = int(np.searchsorted(ends, shards.end, "left")) + 1
                for start, stop in _runs(sizes[first:last], READ_TOKENS):
                    run = slice(first + start, first + stop)
                    at = position if run.start == 0 else int(ends[run.start - 1])
                    begin = offset + int(sizes[: run.start].sum())
                    data = read_elements(tokens, place, settings.token_type, begin, int(sizes[run].sum()))
                    if not kept[run].all():
                        data = data[np.repeat(kept[run], sizes[run])]
                    stream = lay_out(data, sizes[run][kept[run]], settings)
                    yield stream[max(shards.begin - at, 0) : max(shards.end - at, 0)]
                offset += int(sizes.sum())
                position = int(ends[-1])
                if position >= shards.end:
                    return


def _runs(sizes: NDArray[np.int64], most: int) -> Iterator[tuple[int, int]]:
    """Consecutive runs of documents that hold at most ``most`` tokens together, or are one document."""
    ends, start = np.cumsum(sizes), 0
    while start < len(sizes):
        before = int(ends[start - 1]) if start else 0
        stop = max(int(np.searchsorted(ends, before + most, "right")), start + 1)
        yield start, stop
        start = stop


def _write_shard(
    work: Place,
    packed: Place,
    split: str,
    domain: str,
    number: int,
    rows: NDArray[np.integer],
    shard_format: ShardFormat,
) -> dict[str, Any]:
    with new_files(work, [join(packed, split, domain, shard_name(number))]) as (file,):
        return shard_format.write(file, number, rows)


def warn_of_losses(domain: str, counts: dict[str, Any], settings: PackSettings) -> None:
    """Log what a domain loses to training that the user may not expect."""
    train, evaluation, tokens = counts["train"], counts["eval"], counts["tokens"]
    for split, dropped, why in (
        (
            "eval",
            evaluation["dropped_tail_tokens"],
            f"a document is held out whole, and {settings.eval_sequences} eval sequences hold "
            f"{settings.eval_sequences * settings.seq_len:,} tokens. Split its documents, such as books into chapters",
        ),
        ("train", train["dropped_tail_tokens"], "the last sequence would not be full. Lower --seq-len"),
    ):
        if dropped > LARGE_DROPPED_SHARE * tokens:
            log.warning(
                "Domain '%s': %.0f%% of its tokens (%s of %s) are in no sequence of its %s split: %s.",
                domain,
                100 * dropped / tokens,
                f"{dropped:,}",
                f"{tokens:,}",
                split,
                why,
            )
    used = settings.eval_sequences * settings.seq_len
    if used > LARGE_EVAL_SHARE * tokens:
        log.warning(
            "Domain '%s': %d eval sequences take %.0f%% of its tokens from training. Lower --eval-sequences, or add "
            "documents.",
            domain,
            settings.eval_sequences,
            100 * used / tokens,
        )
