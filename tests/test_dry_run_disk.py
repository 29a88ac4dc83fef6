"""What a dry run says of disk, download and store, beside what a run really leaves there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from llmshearing.data.cache import DataBytes
from llmshearing.dry_run.disk import PER_BATCH, disk
from llmshearing.dry_run.report import Devices
from llmshearing.recipe import load_recipe
from tests.conftest import REPOSITORY
from tests.dry_runs import make_debug_data, run
from tests.forkserver import ForkServer
from tests.object_store import Store
from tests.remote_runs import SHORT, machine, train, upload_folder

DEBUG = REPOSITORY / "yamls" / "debug" / "prune.yaml"


def needed(*overrides: str, **sizes: Any) -> Any:
    given = {"train": DataBytes(fetched=100, cached=300), "evaluation": DataBytes(here=7), "num_nodes": 1}
    recipe = load_recipe(DEBUG, overrides)
    return disk(recipe, **{"parameters": 1000, "batches": 60, "saves": 6, **given, **sizes})


def test_disk_and_download_follow_from_what_is_kept() -> None:
    assert needed().checkpoints == 2 * 12_000  # the one before goes when the next is whole
    assert needed("save_num_checkpoints_to_keep=-1").checkpoints == 6 * 12_000
    assert needed(saves=1).checkpoints == 12_000
    assert needed("fsdp_config={}", num_nodes=4).checkpoints == 2 * 3_000
    assert needed("fsdp_config.state_dict_type=full", num_nodes=4).checkpoints == 2 * 12_000
    assert (needed().cache, needed().data, needed().download) == (300, 7, 100)
    assert needed("train_loader.dataset.cache_limit=200").cache == 200
    stored = needed("save_folder=s3://bucket/run/checkpoints", "save_num_checkpoints_to_keep=3", "autoresume=true")
    assert (stored.checkpoints, stored.store, stored.temporary, stored.download) == (24_000, 48_000, 24_000, 12_100)
    assert needed("load_path=gs://bucket/x.pt").download == 12_100


@pytest.mark.slow
def test_a_dry_run_says_what_a_run_leaves_on_the_disk(
    forked: ForkServer, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_debug_data(tmp_path)
    upload_folder(folder / "runs" / "debug" / "data" / "train", "s3://bucket/data")
    overrides = ("variables.run=runs/x", "train_loader.dataset.local=cache", "save_num_checkpoints_to_keep=-1",
                 "train_loader.dataset.remote=s3://bucket/data")  # fmt: skip
    monkeypatch.chdir(folder)
    text, _ = run(load_recipe(DEBUG, (*SHORT, *overrides)), Devices(num_devices=1))
    said = dict(re.findall(r"(cache|checkpoints|metrics|in all) ([\d.e+-]+)", text))
    train(forked, machine(folder, "first"), *overrides)
    checkpoints = sum(path.stat().st_size for path in (folder / "runs/x/checkpoints").glob("ep*"))
    assert float(said["checkpoints"]) * 1e9 == pytest.approx(checkpoints, rel=0.25)  # masks and state beside weights
    cache = sum(path.stat().st_size for path in (folder / "cache").rglob("*.mds"))
    assert cache <= float(said["cache"]) * 1.01e9
    assert float(said["in all"]) == float(said["cache"])
    metrics = (folder / "runs/x/metrics.jsonl").stat().st_size / 8
    assert PER_BATCH / 2 < metrics < PER_BATCH * 2
