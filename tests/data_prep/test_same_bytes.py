"""One corpus, prepared in every way that needs no Ray, gives the bytes that an earlier version wrote."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from llmshearing import storage
from llmshearing.data_prep import first_pass, second_pass
from llmshearing.errors import InputError
from tests.data_prep.same_bytes import EARLIER, EARLIER_SMALL, TOKENIZER, digest, put, run
from tests.object_store import Store


def test_whole_files_and_large_shards_give_the_earlier_output(mixed_corpus: Path, tmp_path: Path) -> None:
    run(mixed_corpus, tmp_path / "out")
    assert digest(tmp_path / "out") == EARLIER


@pytest.mark.parametrize("part_bytes", [2000, 6000])
def test_files_divided_anywhere_give_the_earlier_output(
    part_bytes: int, mixed_corpus: Path, small_pieces: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line numbers of bad lines included."""
    monkeypatch.setattr(first_pass, "PART_BYTES", part_bytes)
    run(mixed_corpus, tmp_path / "out")
    assert digest(tmp_path / "out") == EARLIER_SMALL


@pytest.mark.parametrize("workers", [2, 4])
def test_any_number_of_workers_gives_the_earlier_output(
    workers: int, mixed_corpus: Path, small_pieces: None, tmp_path: Path
) -> None:
    run(mixed_corpus, tmp_path / "out", num_workers=workers)
    assert digest(tmp_path / "out") == EARLIER_SMALL


def test_an_object_store_that_is_slow_fails_and_cuts_off_gives_the_earlier_output(
    mixed_corpus: Path, small_pieces: None, store: Store
) -> None:
    address = put(mixed_corpus, "s3://bucket/corpus")
    store.fail(path="/corpus/code/a.jsonl", status=503)
    store.fail(path="/corpus/other/", cut=700)
    store.fail(path=".tokens", cut=100)
    store.fail(path=".index", delay=0.3)
    store.fail(path=".kept", status=500)
    store.fail(method="PUT", path="/out/", status=500)
    store.fail(method="POST", path="/out/", status=503)
    faults = len(store.faults)
    run(address, "s3://bucket/out", num_workers=2)
    assert digest("s3://bucket/out") == EARLIER_SMALL
    assert sum(fault.times == 0 for fault in store.faults) == faults
    assert not [name for name in storage.files_below("s3://bucket/out") if name.startswith(".")]
    requests = len(store.requests)
    run(address, "s3://bucket/out")
    assert not [path for method, path in store.requests[requests:] if method != "GET" and method != "HEAD"]


def test_an_input_of_a_store_is_known_again_by_its_tag(
    mixed_corpus: Path, small_pieces: None, store: Store, tmp_path: Path
) -> None:
    address = put(mixed_corpus, "s3://bucket/corpus")
    run(address, tmp_path / "out")
    place, record = f"{address}/code/a.jsonl", tmp_path / "out" / "input.json"
    known = json.loads(record.read_text())
    assert known["code"]["a.jsonl"]["etag"] == storage.entity_tag(place)
    known["code"]["a.jsonl"]["mtime_ns"] = 1  # copied since
    record.write_text(json.dumps(known))
    run(address, tmp_path / "out")
    data = storage.read_bytes(place)
    storage.write_bytes(place, data[:-2] + data[:2])
    with pytest.raises(InputError, match=r"another input: the file 'code/a\.jsonl' has changed"):
        run(address, tmp_path / "out")


def stop_at(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, at: int) -> Callable[[], None]:
    """End with a ``KeyboardInterrupt`` at the ``at``-th call; returns what undoes that."""
    call, calls = getattr(owner, name), []

    def stop(*args: object, **options: object) -> object:
        calls.append(name)
        if len(calls) == at:
            raise KeyboardInterrupt
        return call(*args, **options)

    monkeypatch.setattr(owner, name, stop)
    return lambda: monkeypatch.setattr(owner, name, call)


def test_a_run_in_a_store_goes_on_after_interruptions_with_another_packing_between(
    mixed_corpus: Path, small_pieces: None, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = "s3://bucket/out"
    undo = stop_at(monkeypatch, second_pass, "hold_out", 1)
    with pytest.raises(KeyboardInterrupt):
        run(mixed_corpus, out)
    undo()
    generator = random.Random(0)
    for name, seq_len in (("copy", 16), ("upload", 32), ("copy", 32)):
        undo = stop_at(monkeypatch, storage, name, generator.randint(3, 12))
        with pytest.raises(KeyboardInterrupt):
            run(mixed_corpus, out, seq_len=seq_len, tokenizer=replace(TOKENIZER, encoder=Unusable()))
        undo()
        assert storage.info(f"{out}/manifest.json") is None
        if (name, seq_len) == ("copy", 16):
            assert any(part.startswith("train/") for part in storage.files_below(out))
    run(mixed_corpus, out, tokenizer=replace(TOKENIZER, encoder=Unusable()))
    assert digest(out) == EARLIER_SMALL


class Unusable:
    """An encoder that must not be called."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        raise AssertionError("tokenized again")
