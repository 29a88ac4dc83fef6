"""Second pass, domain by domain: tokenized documents into sequences of fixed length, in MDS folders.

Documents are laid end to end, in ``train`` in the order of their files and lines, in ``eval`` in that of their hashes,
each with BOS and EOS as asked, and the stream is cut every ``seq_len`` tokens, through document and file boundaries.
What is left at the end of a split, less than one sequence in ``train``, and what held-out documents have too much in
``eval``, is dropped and counted.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmshearing.data_prep.holdout import EvalDocuments
from llmshearing.data_prep.readers import SourceFile
from llmshearing.data_prep.tokenize_file import read_tokens
from llmshearing.errors import InputError
from llmshearing.fileio import read_json, write_json

log = logging.getLogger(__name__)

#: Above these shares of a domain's tokens, those in no sequence and those held out are worth a warning.
LARGE_DROPPED_SHARE = 0.05
LARGE_EVAL_SHARE = 0.2


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


class Packer:
    """Cuts a stream of documents into sequences."""

    def __init__(self, settings: PackSettings) -> None:
        dtype = settings.token_type
        self._seq_len = settings.seq_len
        self._before = np.array([] if settings.bos_id is None else [settings.bos_id], dtype)
        self._after = np.array([] if settings.eos_id is None else [settings.eos_id], dtype)
        self.tail: NDArray[np.integer] = np.empty(0, dtype)

    def add(self, document: NDArray[np.integer]) -> NDArray[np.integer]:
        """Append a document, shape (length,); returns the sequences it completes, shape (n, seq_len)."""
        stream = np.concatenate([self.tail, self._before, document, self._after])
        end = len(stream) - len(stream) % self._seq_len
        self.tail = stream[end:]
        return stream[:end].reshape(-1, self._seq_len)


class SplitPacker:
    """Packs the documents of one split into an MDS folder, up to ``max_sequences``.

    ``limit``: the first tokens that are taken of each document; None takes it whole.
    """

    def __init__(
        self, folder: Path, settings: PackSettings, *, max_sequences: int | None = None, limit: int | None = None
    ) -> None:
        from streaming import MDSWriter  # imports torch: seconds that the first pass need not wait

        self.counts = SplitCounts()
        self._folder = folder
        self._max_sequences = max_sequences
        self._limit = limit
        self._packer = Packer(settings)
        columns = {"tokens": f"ndarray:{settings.token_type}:{settings.seq_len}"}
        self._writer = MDSWriter(out=str(folder), columns=columns, hashes=["sha256"])

    def add(self, document: NDArray[np.integer]) -> None:
        """Append one document."""
        self.counts.documents += 1
        self.counts.tokens += len(document)
        self.counts.dropped_tail_tokens += len(document[self._limit :]) if self._limit else 0
        for sequence in self._packer.add(document[: self._limit]):
            if self.counts.sequences == self._max_sequences:
                self.counts.dropped_tail_tokens += len(sequence)
            else:
                self._writer.write({"tokens": sequence})
                self.counts.sequences += 1

    def finish(self) -> SplitCounts:
        """Close the folder."""
        self._writer.finish()
        self.counts.dropped_tail_tokens += len(self._packer.tail)
        index = json.loads((self._folder / "index.json").read_text(encoding="utf-8"))
        raw_data = [shard["raw_data"] for shard in index["shards"]]
        self.counts.shards = {raw["basename"]: raw["hashes"]["sha256"] for raw in raw_data}
        return self.counts


def pack_domain(
    domain: str,
    files: Sequence[SourceFile],
    *,
    work: Path,
    settings: PackSettings,
    eval_documents: EvalDocuments,
    held_out: frozenset[int],
    on_tokens: Callable[[int], object],
) -> dict[str, Any]:
    """Write ``work/packed/{train,eval}/<domain>`` from the domain's tokenized files, unless an earlier run has.

    Args:
        domain: name of the domain.
        files: its files, in the order in which they are packed.
        work: folder of the tokenized files.
        settings: how documents become sequences.
        eval_documents: the documents of this domain's eval split; each text goes there once.
        held_out: those of all domains: no document with such a text is trained on.
        on_tokens: called with the number of tokens of each document that is done.

    Returns:
        the domain's counts, for the manifest; they also go to ``work/packed/<domain>.json``, last.

    Raises:
        InputError: nothing is left to train on.
    """
    finished = work / "packed" / f"{domain}.json"
    if finished.exists():
        counts = read_json(finished)
        on_tokens(counts["tokens"])
        return counts
    folders = {split: work / "packed" / split / domain for split in ("train", "eval")}
    for folder in folders.values():
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted here
    train = SplitPacker(folders["train"], settings)
    evaluation = SplitPacker(
        folders["eval"], settings, max_sequences=settings.eval_sequences, limit=eval_documents.limit
    )
    # Few, and packed once all are known: in the order of their hashes, not of the files.
    wanted, found = frozenset(eval_documents.hashes), dict[int, NDArray[np.integer]]()
    duplicates = {"documents": 0, "tokens": 0}
    for file in files:
        for text, tokens in read_tokens(work, file, settings.token_type):
            if text in wanted and text not in found:
                found[text] = tokens
            elif text in held_out:
                duplicates["documents"] += 1
                duplicates["tokens"] += len(tokens)
            else:
                train.add(tokens)
            on_tokens(len(tokens))
    for text in eval_documents.hashes:
        evaluation.add(found[text])
    splits = {"train": train.finish(), "eval": evaluation.finish()}
    if splits["train"].sequences == 0:
        raise InputError(
            f"Domain '{domain}' is too small: holding out {settings.eval_sequences} eval sequences of "
            f"{settings.seq_len} tokens takes {splits['eval'].documents} documents and leaves "
            f"{splits['train'].documents}, too few for one training sequence. Lower --eval-sequences or --seq-len, or "
            "add documents (a document is held out whole)."
        )
    counts = {
        "documents": sum(split.documents for split in splits.values()) + duplicates["documents"],
        "tokens": sum(split.tokens for split in splits.values()) + duplicates["tokens"],
        "dropped_tail_tokens": sum(split.dropped_tail_tokens for split in splits.values()),
        "duplicates_of_eval": duplicates,
        **{name: asdict(split) for name, split in splits.items()},
    }
    _warn(domain, counts, settings)
    os.sync()  # the shards, before the record that declares them finished
    write_json(finished, counts)
    return counts


def _warn(domain: str, counts: dict[str, Any], settings: PackSettings) -> None:
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
