"""Documents into sequences, and any range of shards on its own."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import random
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from streaming import MDSWriter

from llmshearing.data_prep.corpus import SourceFile
from llmshearing.data_prep.count_part import counted_path
from llmshearing.data_prep.mds import ShardFormat, index_bytes, shard_name
from llmshearing.data_prep.pack import PackSettings, lay_out, pack_shards, plan_shards
from llmshearing.data_prep.tokenize_file import RECORD
from llmshearing.data_prep.work import part_path, write_array


def settings(*, seq_len: int = 4, bos_id: int | None = 1, eos_id: int | None = 2) -> PackSettings:
    return PackSettings(seq_len=seq_len, token_type="uint16", bos_id=bos_id, eos_id=eos_id, eval_sequences=1)


def test_documents_are_laid_end_to_end_with_bos_and_eos() -> None:
    tokens = np.array([10, 11, 12, 13, 14, 20], "uint16")
    stream = lay_out(tokens, np.array([5, 1, 0]), settings())
    assert stream.tolist() == [1, 10, 11, 12, 13, 14, 2, 1, 20, 2, 1, 2]
    assert stream.dtype == np.uint16
    assert lay_out(tokens[:0], np.array([], int), settings()).tolist() == []


def write_part(
    work: Path, file: SourceFile, documents: list[np.ndarray], kept: np.ndarray, *, token_type: str = "uint16"
) -> None:
    """A part as the first pass and the count leave it."""
    write_array(work, part_path(work, file, ".tokens"), np.concatenate([np.empty(0, token_type), *documents]))
    index = np.array([(number, len(document)) for number, document in enumerate(documents)], RECORD)
    write_array(work, part_path(work, file, ".index"), index)
    write_array(work, counted_path(work, file, ".kept"), kept)


@pytest.mark.parametrize(("bos_id", "eos_id"), [(None, None), (1, None), (None, 2), (1, 2)])
def test_shards_are_those_of_one_stream_whatever_range_is_packed_when(
    bos_id: int | None, eos_id: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against streaming's own writer, and a stream that is put together in one piece."""
    monkeypatch.setattr("llmshearing.data_prep.pack.READ_TOKENS", 50)
    generator = np.random.default_rng(0)
    packing = settings(seq_len=16, bos_id=bos_id, eos_id=eos_id)
    shards = ShardFormat(16, "uint16", 1000)
    stream: list[int] = []
    parts = []
    for number, count in enumerate((0, 40, 1, 0, 90)):
        file = SourceFile("d", "a.jsonl", tmp_path, number, number + 1)
        lengths = generator.integers(0, 40, count)
        lengths[5:6] = 2000  # through several shards
        documents = [generator.integers(3, 60_000, length).astype("uint16") for length in lengths]
        kept = generator.random(count) < 0.7
        kept[5:6] = True
        write_part(tmp_path, file, documents, kept)
        before = len(stream)
        for document, keep in zip(documents, kept, strict=True):
            if keep:
                stream += [t for t in (bos_id, *document.tolist(), eos_id) if t is not None]
        parts.append((file, len(stream) - before))
    writer = MDSWriter(out=str(tmp_path / "streaming"), columns={"tokens": "ndarray:uint16:16"}, hashes=["sha256"],
                       size_limit=1000)  # fmt: skip
    sequences = len(stream) // 16
    for row in np.array(stream[: sequences * 16], "uint16").reshape(-1, 16):
        writer.write({"tokens": row})
    writer.finish()
    expected = {path.name: path.read_bytes() for path in (tmp_path / "streaming").iterdir()}
    assert len(expected) > 5
    for per_range in (1, 3, 100):
        ranges = plan_shards("d", parts, shards, per_range=per_range)
        entries = {}
        for piece in random.Random(per_range).sample(ranges, len(ranges)):
            packed = pack_shards(piece, work=tmp_path, packed=tmp_path, settings=packing, shard_format=shards)
            entries |= dict(zip(range(piece.first, piece.last), packed, strict=True))
        found = {shard_name(number): (tmp_path / "train" / "d" / shard_name(number)).read_bytes() for number in entries}
        index = index_bytes([entries[number] for number in sorted(entries)])
        assert {**found, "index.json": index} == expected
        for entry in entries.values():
            raw = entry["raw_data"]
            assert raw["hashes"]["sha256"] == hashlib.sha256(found[raw["basename"]]).hexdigest()
    assert json.loads(index)["shards"][-1]["samples"] == sequences - (len(expected) - 2) * shards.rows


def packing_of(megabytes: int, work: Path) -> tuple[int, int]:
    """Peak of memory in bytes while a domain of that size is packed, and how many shards it becomes."""
    length = 8190  # with BOS and EOS two sequences
    packing = PackSettings(seq_len=4096, token_type="uint16", bos_id=1, eos_id=2, eval_sequences=2)
    shards = ShardFormat(4096, "uint16")
    file, documents = SourceFile("code", f"{megabytes}.jsonl", work), megabytes * 1_000_000 // (2 * length)
    texts = [np.full(length, number % 1000, "uint16") for number in range(documents)]
    write_part(work, file, texts, np.ones(documents, bool))
    del texts
    (everything,) = plan_shards("code", [(file, (length + 2) * documents)], shards, per_range=4)
    tracemalloc.start()
    entries = list(pack_shards(everything, work=work, packed=work, settings=packing, shard_format=shards))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(entry["samples"] for entry in entries) == 2 * documents
    return peak, len(entries)


def test_memory_is_that_of_a_shard_however_large_the_domain(tmp_path: Path) -> None:
    # In a process of its own: the tracer counts what threads of other tests take as well.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        (small, of_small), (large, of_large) = process.map(packing_of, (80, 160), (tmp_path, tmp_path))
    assert (of_small, of_large) == (2, 3)  # a shard has 64 MB
    assert large < 1.1 * small < 130_000_000
