"""Documents into sequences."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from llmshearing.data_prep.holdout import EvalDocuments
from llmshearing.data_prep.pack import Packer, PackSettings, pack_domain
from llmshearing.data_prep.readers import SourceFile
from llmshearing.data_prep.tokenize_file import RECORD, part_path


def settings(*, seq_len: int = 4, bos_id: int | None = 1, eos_id: int | None = 2) -> PackSettings:
    return PackSettings(seq_len=seq_len, token_type="uint16", bos_id=bos_id, eos_id=eos_id, eval_sequences=1)


def test_documents_are_laid_end_to_end_with_bos_and_eos() -> None:
    packer = Packer(settings())
    assert packer.add(np.array([10, 11, 12, 13, 14], "uint16")).tolist() == [[1, 10, 11, 12]]
    assert packer.add(np.array([20], "uint16")).tolist() == [[13, 14, 2, 1]]
    assert packer.add(np.array([], "uint16")).tolist() == [[20, 2, 1, 2]]
    assert packer.tail.tolist() == []


@pytest.mark.parametrize(("bos_id", "eos_id"), [(None, None), (1, None), (None, 2), (1, 2)])
def test_nothing_is_lost_or_reordered(bos_id: int | None, eos_id: int | None) -> None:
    generator = np.random.default_rng(0)
    documents = [generator.integers(3, 60_000, length).astype("uint16") for length in generator.integers(0, 40, 200)]
    before, after = ([] if token is None else [token] for token in (bos_id, eos_id))
    packer = Packer(settings(seq_len=16, bos_id=bos_id, eos_id=eos_id))
    packed = np.concatenate([packer.add(document) for document in documents])
    stream = [token for document in documents for token in (*before, *document.tolist(), *after)]
    assert packed.dtype == np.uint16
    assert packed.shape == (len(stream) // 16, 16)
    assert [*packed.ravel().tolist(), *packer.tail.tolist()] == stream
    assert len(packer.tail) < 16


def test_memory_is_that_of_a_shard_however_large_the_domain(tmp_path: Path) -> None:
    length = 8190  # with BOS and EOS two sequences
    packing = PackSettings(seq_len=4096, token_type="uint16", bos_id=1, eos_id=2, eval_sequences=2)
    peaks = {}
    for megabytes in (80, 160):  # a shard has 64
        file, documents = SourceFile("code", f"{megabytes}.jsonl", tmp_path), megabytes * 1_000_000 // (2 * length)
        part_path(tmp_path, file, "").parent.mkdir(parents=True, exist_ok=True)
        with part_path(tmp_path, file, ".tokens").open("wb") as tokens:
            for number in range(documents):
                np.full(length, number % 1000, "uint16").tofile(tokens)
        records = np.array([(number, length) for number in range(documents)], RECORD)
        records.tofile(part_path(tmp_path, file, ".index"))
        tracemalloc.start()
        counts = pack_domain(
            f"{megabytes}",
            [file],
            work=tmp_path,
            settings=packing,
            eval_documents=EvalDocuments((7,), length),
            held_out=frozenset({7}),
            on_tokens=lambda _: None,
        )
        peaks[megabytes] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert counts["train"]["sequences"] == 2 * (documents - 1)
        assert len(counts["train"]["shards"]) == megabytes // 64 + 1
    assert peaks[160] < 1.1 * peaks[80], peaks
