"""Data in an object store that is slow, fails and cuts off: the same samples as from a disk, or one clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llmshearing import storage
from llmshearing.data.domain import DomainDataset
from llmshearing.data.prepared import in_turns
from llmshearing.errors import InputError
from tests.data.helpers import mixes, open_dataset, train, write_domain
from tests.object_store import Store
from tests.remote_runs import upload_folder

REMOTE = "s3://bucket/data/train"
DOMAINS = {"code": 60, "web": 40, "books": 40}


@pytest.fixture
def source(tmp_path: Path, request: pytest.FixtureRequest, store: Store) -> Path:
    """Data on a disk, and in the store."""
    for index, (domain, count) in enumerate(DOMAINS.items()):
        write_domain(tmp_path / "source" / domain, index, count, compression=getattr(request, "param", None))
    upload_folder(tmp_path / "source", REMOTE)
    store.requests.clear()
    return tmp_path / "source"


def samples(root: Path, **settings: Any) -> list[Any]:
    dataset = open_dataset(root, download_timeout=5.0, **settings)
    try:
        return train(dataset, 16, after=mixes())
    finally:
        dataset.unlink()


@pytest.mark.parametrize("source", [None, "zstd:3"], indirect=True)
def test_the_samples_are_those_of_the_disk_whatever_the_store_does_for_a_while(
    source: Path, store: Store, tmp_path: Path
) -> None:
    expected = samples(tmp_path / "disk", remote=str(source))
    for path in ("/index.json", "/shard.00000", "/shard.00001"):
        store.fail(path=path, cut=30, times=2)
        store.fail(path=path, status=503, times=2)
        store.fail(path=path, delay=0.2)
    found = samples(tmp_path / "cache", remote=REMOTE, validate_hash="xxh64")
    assert found == expected
    assert all(fault.times == 0 for fault in store.faults)


def test_a_cache_with_a_limit_gives_the_same_samples_and_stays_below_it(source: Path, tmp_path: Path) -> None:
    expected = samples(tmp_path / "disk", remote=str(source))
    limit = sum(path.stat().st_size for path in source.rglob("index.json")) + 3 * 700
    assert samples(tmp_path / "cache", remote=REMOTE, cache_limit=limit, predownload=0) == expected
    held = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert held <= limit < sum(path.stat().st_size for path in source.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("/index.json", InputError, f"remote is '{REMOTE}/code'"),
        ("/shard.00000", RuntimeError, rf"Shard '.*shard.00000.mds' cannot be fetched from {REMOTE}"),
    ],
)
def test_answers_that_always_end_early_are_an_error_and_never_data(
    source: Path, store: Store, tmp_path: Path, path: str, error: type[Exception], message: str
) -> None:
    store.fail(path=path, cut=30, times=10_000)
    with pytest.raises(error, match=message):
        samples(tmp_path / "cache", remote=REMOTE)
    names = {found.name for found in (tmp_path / "cache").rglob("*.*")}
    assert path.strip("/") not in names
    assert f"{path.strip('/')}.mds" not in names


def test_no_right_to_read_is_one_line(source: Path, store: Store, tmp_path: Path) -> None:
    store.fail(path="data/train", status=403, times=10_000)
    with pytest.raises(
        InputError, match=f"The data cannot be opened: .*remote is '{REMOTE}/code'.*credentials"
    ) as refused:
        samples(tmp_path / "cache", remote=REMOTE)
    assert "\n" not in str(refused.value)


def test_evaluation_reads_the_same_from_a_store_that_fails_for_a_while(
    source: Path, store: Store, tmp_path: Path
) -> None:
    store.fail(path="/shard.00000", cut=30, times=3)
    store.fail(path="/index.json", status=503, times=2)
    disk = DomainDataset("web", str(source / "web"))
    remote = DomainDataset("web", str(tmp_path / "cache"), remote=f"{REMOTE}/web")
    assert all(torch.equal(disk[row]["input_ids"], remote[row]["input_ids"]) for row in range(DOMAINS["web"]))
    store.fail(path="/shard.00001", cut=30, times=10_000)
    with pytest.raises(InputError, match=r"shard.00001.mds' cannot be fetched"):
        DomainDataset("web", str(tmp_path / "other"), remote=f"{REMOTE}/web")


def test_only_the_shards_of_the_sequences_that_are_looked_at_are_fetched(source: Path, store: Store) -> None:
    manifest = json.dumps({"domains": {domain: {} for domain in DOMAINS}})
    storage.write_bytes("s3://bucket/data/manifest.json", manifest.encode())
    found, expected = (list(in_turns(place, 3, vocab_size=256, longest=99)) for place in ("s3://bucket/data", source))
    assert all(map(torch.equal, found, expected))
    assert len(found) == len(DOMAINS)
    assert len({path for method, path in store.requests if method == "GET" and path.endswith(".mds")}) == len(DOMAINS)
