"""Shards of sequences in streaming's MDS format, byte for byte what its ``MDSWriter`` writes of the same ones.

Rows of one size need no Python for each of them, and a process that writes them need not import torch.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

#: Bytes of a shard, at most.
SHARD_BYTES = 1 << 26


@dataclass(frozen=True)
class ShardFormat:
    """What a folder's shards have in common.

    Attributes:
        seq_len, token_type: of the sequences.
        shard_bytes: a shard's size, at most.
    """

    seq_len: int
    token_type: str
    shard_bytes: int = SHARD_BYTES

    @property
    def row_bytes(self) -> int:
        """Bytes of a sequence."""
        return self.seq_len * np.dtype(self.token_type).itemsize

    @property
    def config(self) -> dict[str, Any]:
        """What each shard, and its entry in the index, says of the format."""
        return {
            "version": 2,
            "format": "mds",
            "compression": None,
            "hashes": ["sha256"],
            "size_limit": self.shard_bytes,
            "column_names": ["tokens"],
            "column_encodings": [f"ndarray:{self.token_type}:{self.seq_len}"],
            "column_sizes": [self.row_bytes],
        }

    @property
    def _config_data(self) -> bytes:
        return json.dumps(self.config, sort_keys=True).encode()

    @property
    def rows(self) -> int:
        """Sequences of a full shard: each takes its bytes and an offset."""
        return max((self.shard_bytes - 8 - len(self._config_data)) // (self.row_bytes + 4), 1)

    def write(self, file: IO[bytes], number: int, rows: NDArray[np.integer]) -> dict[str, Any]:
        """Write sequences, shape (n, seq_len), as the shard of a number; returns its entry for the index."""
        config = self._config_data
        offsets = (8 + 4 * len(rows) + len(config) + self.row_bytes * np.arange(len(rows) + 1)).astype("<u4")
        digest, size = hashlib.sha256(), 0
        # Not by ndarray.tofile, whose error does not say that the disk is full.
        for piece in (np.array(len(rows), "<u4").tobytes(), offsets.data, config, np.ascontiguousarray(rows).data):
            file.write(piece)
            digest.update(piece)
            size += memoryview(piece).nbytes
        raw = {"basename": shard_name(number), "bytes": size, "hashes": {"sha256": digest.hexdigest()}}
        return {"samples": len(rows), "raw_data": raw, "zip_data": None, **self.config}


def shard_name(number: int) -> str:
    """Name of a shard's file."""
    return f"shard.{number:05}.mds"


def index_bytes(entries: list[dict[str, Any]]) -> bytes:
    """The ``index.json`` of a folder."""
    return json.dumps({"version": 2, "shards": entries}, sort_keys=True).encode()
