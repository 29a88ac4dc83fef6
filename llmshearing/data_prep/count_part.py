"""Which documents of a part are trained on, once those held out are known; packing needs their numbers beforehand.

For each part, ``<part>.kept`` says of each document whether it goes into ``train``, ``<part>.found`` where the first
copies of its domain's eval documents are, and ``<part>.json``, written last, how many there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmshearing import storage
from llmshearing.data_prep.corpus import SourceFile
from llmshearing.data_prep.holdout import EvalDocuments
from llmshearing.data_prep.tokenize_file import read_index
from llmshearing.data_prep.work import new_files, read_array
from llmshearing.fileio import read_json
from llmshearing.storage import Place, join

#: A document of the eval split: hash of its text, where its tokens begin in its part, and how many they are.
FOUND = np.dtype([("hash", "<u8"), ("offset", "<u8"), ("tokens", "<u8")])


@dataclass(frozen=True)
class PartCounts:
    """Documents of a part and their tokens, without BOS and EOS.

    Attributes:
        documents, tokens: those to train on.
        held_documents, held_tokens: those whose text is held out.
        copied_documents, copied_tokens: copies of others to train on that are left out.
    """

    documents: int
    tokens: int
    held_documents: int
    held_tokens: int
    copied_documents: int
    copied_tokens: int


def counted_path(packed: Place, file: SourceFile, ending: str) -> str:
    """Where a part's ``.kept``, ``.found`` and ``.json`` are."""
    return join(packed, "parts", f"{file.key}{ending}")


def held_out_path(packed: Place) -> str:
    """Where the hashes of all domains' eval documents are, in order."""
    return join(packed, "held_out")


def eval_path(packed: Place, domain: str) -> str:
    """Where a domain's eval documents are named."""
    return join(packed, "eval_documents", f"{domain}.json")


def read_eval_documents(packed: Place, domain: str) -> EvalDocuments:
    """A domain's eval documents."""
    record = read_json(eval_path(packed, domain))
    return EvalDocuments(tuple(record["hashes"]), record["limit"])


def counted_part(packed: Place, file: SourceFile) -> PartCounts | None:
    """What :func:`count_part` has found, or None where it has not."""
    record = counted_path(packed, file, ".json")
    return None if storage.info(record) is None else PartCounts(**read_json(record))


def count_part(file: SourceFile, copies: NDArray[np.int64], *, work: Place, packed: Place) -> PartCounts:
    """Count the documents of a part.

    Args:
        file: the part.
        copies: its documents that are copies of earlier ones, in order; see :mod:`data_prep.dedup`.
        work: folder of the tokenized parts.
        packed: folder of this packing.
    """
    held_out = read_array(held_out_path(packed), "<u8")
    wanted = np.sort(np.array(read_eval_documents(packed, file.domain).hashes, "<u8"))
    counts = dict.fromkeys(PartCounts.__dataclass_fields__, 0)
    found: dict[int, tuple[int, int, int]] = {}
    row = offset = 0

    def add(kind: str, tokens: NDArray[np.uint64]) -> None:
        counts[f"{kind}documents"] += len(tokens)
        counts[f"{kind}tokens"] += int(tokens.sum())

    with new_files(work, [counted_path(packed, file, ending) for ending in (".kept", ".found")]) as (kept, places):
        for piece in read_index(work, file):
            tokens = piece["tokens"]
            offsets = offset + np.cumsum(tokens) - tokens
            _, first = np.unique(piece["hash"], return_index=True)
            for at in first[_among(piece["hash"][first], wanted)].tolist():
                text = int(piece["hash"][at])
                found.setdefault(text, (text, int(offsets[at]), int(tokens[at])))
            held = _among(piece["hash"], held_out)
            copied = np.zeros(len(piece), bool)
            here = copies[np.searchsorted(copies, row) : np.searchsorted(copies, row + len(piece))]
            copied[here - row] = True
            copied &= ~held
            add("", tokens[~held & ~copied])
            add("held_", tokens[held])
            add("copied_", tokens[copied])
            kept.write((~held & ~copied).data)
            row += len(piece)
            offset += int(tokens.sum())
        places.write(np.array(list(found.values()), FOUND).data)
    storage.write_json(counted_path(packed, file, ".json"), counts)
    return PartCounts(**counts)


def _among(values: NDArray[np.uint64], members: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which values are among sorted ``members``, of which there is at least one."""
    at = np.searchsorted(members, values)
    at[at == len(members)] = 0
    return members[at] == values
