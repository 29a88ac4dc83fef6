"""Runs whose folder, start and data are in an object store, against a real S3 interface, by the real command."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llmshearing import storage
from llmshearing.convert.commands import open_checkpoint
from llmshearing.report.__main__ import main
from tests.dry_runs import make_debug_data
from tests.forkserver import ForkServer
from tests.object_store import Store
from tests.remote_runs import RUN, TO_STORE, losses, machine, refused, train, training, upload_folder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, forked: ForkServer) -> Path:
    """Data, and an uninterrupted run on a disk, in ``runs/whole``."""
    folder = make_debug_data(tmp_path_factory.mktemp("world"))
    train(forked, machine(folder, "whole"), "variables.run=runs/whole")
    return folder


def state_at_end(path: Path) -> dict[str, torch.Tensor]:
    content: dict[str, Any] = torch.load(path, weights_only=False)["state"]
    masks = dict(content["algorithms"])["TargetedPruning"]["masks"]["log_alpha"]
    return {**content["model"], **{f"mask {name}": tensor for name, tensor in masks.items()}}


def assert_equals_whole(world: Path, run: str, copy: Path) -> None:
    """A finished run in the store is in all that counts the one on the disk."""
    files = storage.files_below(run)
    kept = {"checkpoints/ep0-ba8-rank0.pt", "checkpoints/ep0-ba6-rank0.pt", "checkpoints/latest-rank0.pt.symlink"}
    assert {name for name in files if name.startswith("checkpoints/")} == kept
    assert {"metrics.jsonl", "recipe.yaml", "environment.json", "compute.json"} <= files.keys()
    assert f"save_folder: {run}/checkpoints" in storage.read_bytes(f"{run}/recipe.yaml").decode()
    assert losses(storage.read_bytes(f"{run}/metrics.jsonl")) == losses(
        (world / "runs" / "whole" / "metrics.jsonl").read_text()
    )
    storage.download(f"{run}/checkpoints/ep0-ba8-rank0.pt", copy)
    found, expected = state_at_end(copy), state_at_end(world / "runs" / "whole" / "checkpoints" / "latest-rank0.pt")
    assert found.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)] == []


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    def run(words: list[str]) -> str:
        capsys.readouterr()
        main(words)
        return capsys.readouterr().out.strip()

    return run


def test_a_killed_run_goes_on_on_another_machine_and_equals_one_that_was_never_stopped(
    forked: ForkServer, world: Path, store: Store, tmp_path: Path, report: Callable[[list[str]], str]
) -> None:
    process = forked.start(training(*TO_STORE), **machine(world, "first"))
    while storage.info(f"{RUN}/checkpoints/ep0-ba4-rank0.pt") is None:
        assert process.poll() is None, process.read()
        time.sleep(0.01)
    process.kill()
    process.wait()
    reached = max(losses(storage.read_bytes(f"{RUN}/metrics.jsonl")))
    assert reached >= 4  # the records are there before the checkpoint
    said = train(forked, machine(world, "second"), *TO_STORE)
    assert f"{RUN}/checkpoints/latest-rank0.pt" in said  # of the command that comes next
    assert_equals_whole(world, RUN, tmp_path / "copy.pt")
    assert not [path for path in (world / "second-tmp").rglob("*") if path.is_file() and path.name != ".lock"]
    assert not (world / "s3:").exists()
    assert report([RUN]) == f"{RUN}/report.html"
    assert storage.read_bytes(f"{RUN}/report.html").startswith(b"<!doctype html>")
    assert "mine#2: training" in report(["compute", RUN])
    before = storage.files_below(RUN)
    assert "is finished" in train(forked, machine(world, "second"), *TO_STORE)
    assert storage.files_below(RUN).keys() == before.keys()


def test_a_run_that_overwrites_a_longer_one_keeps_its_own_checkpoints(
    forked: ForkServer, world: Path, store: Store
) -> None:
    upload_folder(world / "runs" / "whole" / "checkpoints", f"{RUN}/checkpoints")
    before = storage.info(f"{RUN}/checkpoints/ep0-ba6-rank0.pt")
    anew = ("autoresume=false", "save_overwrite=true", "max_duration=7ba", "save_interval=3ba")
    train(forked, machine(world, "first"), *TO_STORE, *anew)
    files = storage.files_below(f"{RUN}/checkpoints")
    kept = {"ep0-ba7-rank0.pt", "ep0-ba6-rank0.pt", "latest-rank0.pt.symlink"}
    assert files.keys() - {"latest-rank0.pt"} == kept  # a link was uploaded as what it points to
    assert files["ep0-ba6-rank0.pt"] != before
    with open_checkpoint(f"{RUN}/checkpoints/latest-rank0.pt") as checkpoint:
        assert checkpoint.load("timestamp")["Timestamp"]["batch"] == 7


def test_a_store_that_fails_for_a_while_changes_nothing(
    forked: ForkServer, world: Path, store: Store, tmp_path: Path
) -> None:
    for method in ("PUT", "GET", "POST"):
        for status in (503, 500):
            store.fail(method=method, path="runs/mine", status=status)
    store.fail(path="runs/mine", delay=1.0)
    upload_folder(world / "runs" / "debug" / "data" / "train", "s3://bucket/data")
    store.fail(path="/shard.00000", cut=1000, times=3)
    store.fail(path="/index.json", status=503, times=2)
    fetched = ("train_loader.dataset.local=cache", "train_loader.dataset.remote=s3://bucket/data")
    train(forked, machine(world, "first"), *TO_STORE, *fetched)
    assert_equals_whole(world, RUN, tmp_path / "copy.pt")
    assert all(fault.times == 0 for fault in store.faults)


def test_checkpoints_that_cannot_be_uploaded_end_the_run_with_one_line_and_the_metrics_are_there(
    forked: ForkServer, world: Path, store: Store
) -> None:
    store.fail(method="PUT", path="ba4-rank0.pt", status=403, times=1000)
    said = refused(forked, machine(world, "first"), *TO_STORE)
    assert f"A checkpoint could not be uploaded to '{RUN}'" in said
    assert "the same command goes on" in said
    assert max(losses(storage.read_bytes(f"{RUN}/metrics.jsonl"))) >= 4


@pytest.mark.dist
def test_sharded_checkpoints_go_to_the_store_and_one_that_was_not_all_uploaded_is_not_gone_on_from(
    forked: ForkServer, world: Path, store: Store
) -> None:
    command = ["composer", "-n", "2", *training(*TO_STORE, "fsdp_config.state_dict_type=sharded")[1:]]

    def run(name: str) -> tuple[dict[str, torch.Tensor], Any]:
        done = forked.run(command, timeout=300, **machine(world, name))
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        with open_checkpoint(f"{RUN}/checkpoints/latest-rank0.pt") as checkpoint:
            tensors = {name: tensor.read() for name, tensor in checkpoint.tensors.items()}
        return tensors, losses(storage.read_bytes(f"{RUN}/metrics.jsonl"))

    weights, logged = run("first")
    files = storage.files_below(f"{RUN}/checkpoints")
    parts = {f"ep0-ba{batch}/{name}" for batch in (6, 8) for name in (".metadata", "__0_0.distcp", "__1_0.distcp")}
    assert files.keys() == {*parts, "latest-rank0.pt.symlink"}
    storage.remove(f"{RUN}/checkpoints/ep0-ba8/__1_0.distcp")  # as a kill leaves it
    again, logged_again = run("second")
    assert storage.files_below(f"{RUN}/checkpoints").keys() == files.keys()
    assert logged_again == logged
    assert [name for name, tensor in weights.items() if not torch.equal(again[name], tensor)] == []


def test_training_starts_from_a_checkpoint_at_an_address(forked: ForkServer, world: Path, store: Store) -> None:
    whole = world / "runs" / "whole" / "checkpoints"
    storage.upload(whole / "ep0-ba6-rank0.pt", "s3://bucket/other/ep0-ba6-rank0.pt")
    storage.write_bytes("s3://bucket/other/latest-rank0.pt.symlink", b"somewhere/else/ep0-ba6-rank0.pt")
    settings = machine(world, "first")
    train(forked, settings, "variables.run=runs/from", "load_path=s3://bucket/other/latest-rank0.pt")
    found, expected = (state_at_end(path / "latest-rank0.pt") for path in (world / "runs/from/checkpoints", whole))
    assert [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)] == []
    said = refused(forked, settings, "variables.run=runs/from", "load_path=s3://bucket/other/none.pt")
    assert "There is nothing at 's3://bucket/other/none.pt'" in said


def test_a_shard_that_never_comes_whole_ends_the_run_with_one_line(
    forked: ForkServer, world: Path, store: Store
) -> None:
    upload_folder(world / "runs" / "debug" / "data" / "train", "s3://bucket/data")
    store.fail(path="/shard.00000", cut=1000, times=100_000)
    fetched = ("train_loader.dataset.local=other", "train_loader.dataset.remote=s3://bucket/data")
    said = refused(forked, machine(world, "first"), "variables.run=runs/cut", "train_loader.num_workers=1", *fetched)
    assert "cannot be fetched from s3://bucket/data" in said


@pytest.mark.parametrize("extra", [(), ("dry_run=true",)], ids=["training", "dry run"])
def test_no_access_or_no_bucket_is_one_line_before_training(
    forked: ForkServer, world: Path, store: Store, extra: tuple[str, ...]
) -> None:
    nowhere = ("variables.run=s3://elsewhere/runs/mine", "autoresume=true", *extra)
    said = refused(forked, machine(world, "first"), *nowhere)
    assert "save_folder: there is no bucket 's3://elsewhere'" in said
    store.fail(method="GET", status=403, times=1000)
    store.fail(method="HEAD", status=403, times=1000)
    assert "AWS_ACCESS_KEY_ID" in refused(forked, machine(world, "first"), *TO_STORE, *extra)
