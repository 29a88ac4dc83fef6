"""From the ``tokens`` column of an MDS sample to token ids, whoever prepared it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmshearing.errors import InputError

log = logging.getLogger(__name__)

_BYTE_DTYPES = ("int64", "int32", "uint16")  # widest first
_LARGEST_VOCABULARY = 1 << 20  # larger than any tokenizer's; used to recognise untyped bytes where none is given


class TokenDecoder:
    """Checks and converts the ``tokens`` column.

    Typed columns (``ndarray:uint16:4096``, as ``data_prep/prepare.py`` writes, or LLM Foundry's ``ndarray:int32``)
    say what they hold. A column of plain ``bytes`` (older LLM Foundry: int64; the original Sheared LLaMA: uint16 or
    int64) does not; its type is recognised in the first sample as the widest whose every id fits the vocabulary, of
    those that give ``seq_len`` ids where that is known.

    Args:
        seq_len: tokens that each sample must have. ``None``: as many as the first one has.
        vocab_size: ids must be below it. ``None``: not checked.
        dtype: numpy type of a ``bytes`` column. ``None``: recognised.
    """

    def __init__(self, *, seq_len: int | None = None, vocab_size: int | None = None, dtype: str | None = None) -> None:
        self.seq_len = seq_len
        self.vocab_size = vocab_size
        self.dtype = dtype

    def __call__(self, sample: Mapping[str, Any], where: str) -> dict[str, torch.Tensor]:
        """``input_ids`` and ``labels`` of one sample, int64, (seq_len,) each. HF models shift the labels themselves.

        Raises:
            InputError: wrong length, ids outside the vocabulary or unrecognisable bytes; ``where`` names the place.
        """
        tokens = sample["tokens"]
        if isinstance(tokens, bytes):
            tokens = self._from_bytes(tokens, where)
        if self.seq_len is None:
            self.seq_len = len(tokens)
        if tokens.shape != (self.seq_len,):
            raise InputError(
                f"{where} holds tokens of shape {tuple(tokens.shape)}, not {self.seq_len} tokens. Prepare every "
                "domain with one sequence length, and set seq_len to it or leave it out."
            )
        if self.vocab_size is not None and not _below(tokens, self.vocab_size):
            raise InputError(
                f"{where} holds token ids from {tokens.min()} to {tokens.max()}, but the vocabulary has "
                f"{self.vocab_size}. Prepare the data with the tokenizer of the model."
            )
        input_ids = torch.from_numpy(tokens.astype(np.int64))
        return {"input_ids": input_ids, "labels": input_ids.clone()}

    def _from_bytes(self, data: bytes, where: str) -> NDArray[Any]:
        if self.dtype is None:
            limit = self.vocab_size or _LARGEST_VOCABULARY
            fits = [name for name in _BYTE_DTYPES if _holds_ids(data, name, limit)]
            if not fits:
                raise InputError(
                    f"{where} holds {len(data)} bytes that are not token ids below {limit} in any of "
                    f"{', '.join(_BYTE_DTYPES)}. Set token_dtype, and check that the tokenizer is the right one."
                )
            # A sample of small ids, such as padding, may fit a wider type too; a known length tells them apart.
            exact = [name for name in fits if len(data) == (self.seq_len or 0) * np.dtype(name).itemsize]
            self.dtype = (exact or fits)[0]
            log.info("Tokens stored as plain bytes are read as %s.", self.dtype)
        return np.frombuffer(data, self.dtype)


def _holds_ids(data: bytes, dtype: str, limit: int) -> bool:
    if len(data) % np.dtype(dtype).itemsize:
        return False
    ids = np.frombuffer(data, dtype)
    return bool(len(ids)) and _below(ids, limit)


def _below(ids: NDArray[Any], limit: int) -> bool:
    return bool(ids.max() < limit) and (ids.dtype.kind == "u" or bool(ids.min() >= 0))


def check_columns(shards: list[Any], domain: str, *, seq_len: int | None, vocab_size: int | None) -> int | None:
    """Check the columns of a domain's shards before training, from the index alone.

    Args:
        shards: streaming's shard readers of the domain.
        domain: its name, for messages.
        seq_len: tokens per sample that are expected, if known.
        vocab_size: ids in the vocabulary, if known.

    Returns:
        Tokens per sample where the column's type states it, else ``seq_len``.

    Raises:
        InputError: there is no ``tokens`` column, its type contradicts ``seq_len``, or it cannot hold the vocabulary.
    """
    for shard in shards:
        columns = dict(zip(shard.column_names, shard.column_encodings, strict=True))
        if "tokens" not in columns:
            raise InputError(
                f"Domain '{domain}' has columns {sorted(columns)}, not 'tokens'. Prepare it with data_prep/prepare.py."
            )
        kind, *details = columns["tokens"].split(":")
        if kind not in ("ndarray", "bytes") or (details and not np.issubdtype(details[0], np.integer)):
            raise InputError(f"Domain '{domain}' stores tokens as '{columns['tokens']}', not as integers or bytes.")
        if details and vocab_size is not None and vocab_size > np.iinfo(details[0]).max + 1:
            raise InputError(
                f"Domain '{domain}' stores tokens as {details[0]}, which cannot hold every id of a vocabulary of "
                f"{vocab_size}. Prepare the data with the tokenizer of the model."
            )
        if len(details) == 2:
            if seq_len is not None and details[1] != str(seq_len):
                raise InputError(
                    f"Domain '{domain}' holds sequences of {details[1]} tokens, where {seq_len} are expected. Prepare "
                    "every domain with one sequence length, and set seq_len to it or leave it out."
                )
            seq_len = int(details[1])
    return seq_len
