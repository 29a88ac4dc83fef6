"""Preparation on Ray: one cluster of three nodes for all tests, beside a store that its nodes know."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmshearing import storage
from llmshearing.data_prep.corpus import find_corpus
from llmshearing.data_prep.mds import ShardFormat
from llmshearing.data_prep.pack import PackSettings
from llmshearing.data_prep.tasks import Job, tokenize
from llmshearing.data_prep.work import part_path
from llmshearing.errors import InputError
from llmshearing.fileio import files_below
from tests.data_prep.same_bytes import EARLIER_SMALL, TOKENIZER, Characters, digest, put, run
from tests.object_store import environment, serving


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    pytest.importorskip("ray", reason="no Ray: pip install 'llmshearing[ray]'")
    from ray.cluster_utils import Cluster

    root = str(Path(__file__).resolve().parents[2])
    with serving() as store, pytest.MonkeyPatch.context() as patch:
        for name, value in {**environment(store), "PYTHONPATH": root}.items():
            patch.setenv(name, value)
        node = {"num_cpus": 1, "object_store_memory": 80_000_000}
        nodes = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        for _ in range(2):
            nodes.add_node(**node)
        yield nodes
        nodes.shutdown()


@pytest.mark.dist
def test_three_nodes_and_an_object_store_give_the_earlier_output(
    cluster: Any, mixed_corpus: Path, small_pieces: None
) -> None:
    address = put(mixed_corpus, "s3://bucket/corpus")
    run(address, "s3://bucket/out", engine="ray", num_workers=None, ray_address=cluster.address)
    assert digest("s3://bucket/out") == EARLIER_SMALL


class Slow(Characters):
    """Leaves time to do something on the way."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        time.sleep(0.2)
        return super().encode(texts)


class DeadlyOnce(Characters):
    """Ends the first process that uses it as the system's out-of-memory killer would."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return super().encode(texts)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


@pytest.mark.dist
def test_a_killed_worker_of_a_node_costs_nothing_but_its_task(
    cluster: Any, mixed_corpus: Path, small_pieces: None, tmp_path: Path
) -> None:
    tokenizer = replace(TOKENIZER, encoder=DeadlyOnce(str(tmp_path / "mark")))
    run(mixed_corpus, tmp_path / "out", engine="ray", ray_address=cluster.address, tokenizer=tokenizer)
    assert (tmp_path / "mark").exists()
    assert digest(tmp_path / "out") == EARLIER_SMALL


@pytest.mark.dist
def test_a_node_that_goes_on_the_way_changes_nothing(
    cluster: Any, mixed_corpus: Path, small_pieces: None, tmp_path: Path
) -> None:
    def remove() -> None:
        while sum(path.name.endswith(".tokens") for path in files_below(tmp_path)) < 2:
            time.sleep(0.01)
        cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
        removed.set()

    removed = threading.Event()
    thread = threading.Thread(target=remove)
    thread.start()
    tokenizer = replace(TOKENIZER, encoder=Slow())
    options = {"engine": "ray", "num_workers": None, "ray_address": cluster.address}
    run(mixed_corpus, tmp_path / "out", tokenizer=tokenizer, **options)
    thread.join()
    assert removed.is_set()
    assert digest(tmp_path / "out") == EARLIER_SMALL


@pytest.mark.dist
def test_a_machine_that_does_not_see_the_output_or_the_input_is_named(
    cluster: Any, mixed_corpus: Path, tmp_path: Path
) -> None:
    from llmshearing.data_prep.engine_ray import RayEngine

    packing = PackSettings(seq_len=32, token_type="uint16", bos_id=1, eos_id=2, eval_sequences=1)
    job = Job(str(tmp_path), "this run", Characters(), None, packing, ShardFormat(32, "uint16"))
    file = find_corpus(mixed_corpus)["code"][0]
    info = storage.info(file.path)
    assert info is not None
    for mark, size, message in (
        (None, info, "does not see '.*OUT has to be a folder that all machines share"),
        ("another run", info, "does not see"),
        (
            "this run",
            replace(info, mtime_ns=1),
            r"a\.jsonl' changed since .* or is not the same file on .*INPUT has to be",
        ),
    ):
        if mark:
            storage.write_json(tmp_path / "run.json", mark)
        with RayEngine(job, 1, cluster.address) as engine, pytest.raises(InputError, match=message):
            list(engine.run(tokenize, [(file, size)]))
        assert not storage.files_below(part_path(tmp_path, file, "").rpartition("/")[0])


@pytest.mark.dist
def test_ray_on_this_machine_alone_gives_the_earlier_output(
    mixed_corpus: Path, small_pieces: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="no Ray: pip install 'llmshearing[ray]'")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    run(mixed_corpus, tmp_path / "out", engine="ray", ray_address="local")
    assert digest(tmp_path / "out") == EARLIER_SMALL


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "ray"}, r"needs Ray: pip install 'llmshearing\[ray\]'"),
        ({"ray_address": "auto"}, "--ray-address auto is for --engine ray"),
    ],
)
def test_an_engine_that_is_not_there_is_named(
    options: dict[str, str], message: str, mixed_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=message):
        run(mixed_corpus, tmp_path / "out", **options)
