"""Small prepared data whose every sample says where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from streaming import MDSWriter

SEQ_LEN = 8
VOCAB = 512


def write_domain(folder: Path, domain: int, samples: int, *, per_shard: int = 16, seq_len: int = SEQ_LEN) -> None:
    """Write ``samples`` rows that begin with (domain, high digit, low digit of the sample's number, base 256)."""
    row_bytes = seq_len * 2
    with MDSWriter(
        out=str(folder),
        columns={"tokens": f"ndarray:uint16:{seq_len}"},
        hashes=["xxh64"],
        size_limit=per_shard * (row_bytes + 4) + 300,
    ) as writer:
        for number in range(samples):
            row = np.random.default_rng((domain, number)).integers(0, 256, seq_len)
            row[:3] = domain, number // 256, number % 256
            writer.write({"tokens": row.astype(np.uint16)})


def numbers(batch: Mapping[str, object]) -> list[tuple[int, int]]:
    """(domain, sample number) of each row of a batch of :func:`write_domain` data."""
    rows = np.asarray(batch["input_ids"])
    return [(int(row[0]), int(row[1]) * 256 + int(row[2])) for row in rows]


@pytest.fixture(scope="session")
def make_data(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Returns a function that writes ``root/<domain>/`` with so many samples each, once per set of sizes."""
    made: dict[tuple[tuple[str, int], ...], Path] = {}

    def make(**samples: int) -> Path:
        key = tuple(samples.items())
        if key not in made:
            made[key] = tmp_path_factory.mktemp("mds")
            for index, (domain, count) in enumerate(samples.items()):
                write_domain(made[key] / domain, index, count)
        return made[key]

    return make
