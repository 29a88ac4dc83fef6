"""Wrong types and values: one line that names the key, the value and the remedy, before anything is opened."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmshearing.data.callback import DynamicBatchLoading
from llmshearing.data.carry import apportion_carried
from llmshearing.data.evaluation import build_evaluators
from llmshearing.data.loaders import build_dynamic_streaming_dataloader
from llmshearing.data.proportions import apportion, update_proportions
from llmshearing.errors import InputError
from tests.data.helpers import open_dataset

NAN, INFINITY = float("nan"), float("inf")
WHOLE = ("2ba", 0, -1, 1.5, True, None, [4], NAN)


def refused(call: Callable[[], object], *parts: str) -> None:
    """``call`` has to raise one line that holds all of ``parts``."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("update_interval", value) for value in WHOLE),
        *(("batch_size", value) for value in WHOLE),
        *(("shuffle_block_size", value) for value in WHOLE),
        *(("download_retry", value) for value in WHOLE),
        *(("shuffle_seed", value) for value in ("abc", -1, 1.5, True, None)),
        *((key, value) for key in ("seq_len", "vocab_size") for value in ("4k", 0, 1.5, True)),
        *(("predownload", value) for value in ("many", -1, 1.5)),
        *((key, value) for key in ("update_timeout", "download_timeout") for value in ("1m", 0, -1, NAN, None, True)),
        *(("keep_zip", value) for value in ("yes_please", 1, None)),
        *(("on_exhausted", value) for value in ("halt", 5, None, ["stop"])),
        *(("token_dtype", value) for value in ("int65", "float32", 5, ["int32"])),
        *(("validate_hash", value) for value in ("sha0", 5, ["sha1"])),
        *(("cache_limit", value) for value in ("much", -5, 0, True, 1.5, [1])),
        *(("local", value) for value in (5, None, "", ["a"])),
        *(("remote", value) for value in (5, ["a"], "")),
    ],
)
def test_dataset(key: str, value: Any, tmp_path: Path) -> None:
    refused(lambda: open_dataset(tmp_path, **{key: value}), key, str(value) if isinstance(value, str) else repr(value))


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"proportions": 5}, ("proportions: 5", "{web: 0.7")),
        ({"proportions": {}}, ("proportions: {}",)),
        ({"proportions": ["web"]}, ("proportions: ['web']",)),
        ({"proportions": {1: 1.0}}, ("proportions: {1: 1.0}",)),
        ({"proportions": {"web": NAN}}, ("proportions.web: nan",)),
        ({"proportions": {"web": "half"}}, ("proportions.web: 'half'",)),
        ({"proportions": {"web": -0.5, "code": 1.5}}, ("proportions.web: -0.5",)),
        ({"proportions": {"web": True}}, ("proportions.web: True",)),
        ({"proportions": {"web": 0.5}}, ("sum to 1", "0.5")),
        ({"proportions": {"wbe": 1.0}}, ("wbe", "no index.json")),
        ({"proportions": "none.json"}, ("none.json",)),
        ({"start": 5}, ("start: 5",)),
        ({"start": {"wbe": 5}}, ("start 'wbe'", "Did you mean 'web'")),
        ({"start": {"web": -1}}, ("start.web: -1",)),
        ({"start": {"web": 1.5}}, ("start.web: 1.5",)),
        ({"start": {"web": "all"}}, ("start.web: 'all'",)),
        ({"local": {"web": "x"}}, ("local", "no domain 'code'")),
        ({"local": {"web": 5, "code": "x", "books": "x"}}, ("local.web: 5",)),
        ({"remote": "foo://x"}, ("remote is 'foo://x'", "Unsupported remote path")),
        ({"remote": "gs://bucket/x", "local": "/proc/none"}, ("cannot be opened",)),
        ({"cache_limit": "1gb"}, ("their only copy",)),
    ],
)
def test_dataset_as_a_whole(data: Path, settings: dict[str, Any], parts: tuple[str, ...]) -> None:
    refused(lambda: open_dataset(data, **settings), *parts)


def test_folders_that_are_files(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(lambda: open_dataset(tmp_path / "file"), "local: ", "is a file")
    refused(lambda: open_dataset(tmp_path / "cache", remote=str(tmp_path / "file")), "remote: ", "is a file")
    (tmp_path / "cache").mkdir()
    for name in ("code", "web", "books"):
        (tmp_path / "cache" / name).write_text("")  # nothing can be written below, as in a read-only folder
    refused(lambda: open_dataset(tmp_path / "cache", remote=str(data)), "cannot be opened", "can be written")


INDEXES = [
    '{"shards": [{}], "version": 2}',
    "[]",
    "{",
    "",
    "null",
    '{"version": 2}',
    '{"version": 1, "shards": []}',
    '{"shards": 5, "version": 2}',
    '{"shards": [5], "version": 2}',
    '{"shards": [{"format": "mds"}], "version": 2}',
]


@pytest.mark.parametrize("index", INDEXES)
def test_broken_indexes(data: Path, tmp_path: Path, index: str) -> None:
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "web" / "index.json").write_text(index)
    refused(lambda: open_dataset(tmp_path / "data"), "web/index.json'")
    refused(lambda: open_dataset(tmp_path / "c", remote=str(tmp_path / "data"), download_retry=1), "cannot be opened")
    refused(lambda: build_evaluators(str(tmp_path / "data"), ["web"], batch_size=1), "web/index.json'")


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"dataset": 5}, ("dataset: 5",)),
        ({"dataset": {"local": "x"}}, ("dataset has no proportions",)),
        ({"dataset": {"locla": "x"}}, ("'locla'", "Did you mean 'local'")),
        ({"dataset": {"batch_size": 4}}, ("'batch_size'",)),
        ({"device_batch_size": 0}, ("device_batch_size: 0",)),
        ({"num_workers": -1}, ("num_workers: -1",)),
        ({"num_workers": "two"}, ("num_workers: 'two'",)),
        ({"num_workers": True}, ("num_workers: True",)),
        ({"prefetch_factor": 0}, ("prefetch_factor: 0",)),
        ({"timeout": "long"}, ("timeout: 'long'",)),
        ({"timeout": -1}, ("timeout: -1",)),
        ({"pin_memory": "no"}, ("pin_memory: 'no'",)),
        ({"persistent_workers": 5}, ("persistent_workers: 5",)),
        ({"drop_last": "x"}, ("drop_last: 'x'",)),
    ],
)
def test_loader(settings: dict[str, Any], parts: tuple[str, ...]) -> None:
    given = {"tokenizer": None, "device_batch_size": 4, "dataset": {}, **settings}
    refused(lambda: build_dynamic_streaming_dataloader(**given), *parts)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"batch_size": 0}, ("batch_size: 0",)),
        ({"batch_size": "many"}, ("batch_size: 'many'",)),
        ({"num_workers": -1}, ("num_workers: -1",)),
        ({"seq_len": "4k"}, ("seq_len: '4k'",)),
        ({"seq_len": 9}, ("9 are expected",)),
        ({"validate_hash": "sha0"}, ("validate_hash 'sha0'",)),
        ({"eval_interval": "ten"}, ("eval_interval: 'ten'",)),
        ({"eval_interval": [5]}, ("eval_interval: [5]",)),
        ({"domains": "web"}, ("domains: 'web'",)),
        ({"domains": 5}, ("domains: 5",)),
        ({"domains": ["wbe"]}, ("wbe", "no index.json")),
        ({"local": 5}, ("local: 5",)),
        ({"remote": 5}, ("remote: 5",)),
        ({"remote": "foo://x"}, ("foo://x", "Unsupported remote path")),
    ],
)
def test_evaluators(eval_data: Path, settings: dict[str, Any], parts: tuple[str, ...]) -> None:
    given = {"local": str(eval_data), "domains": ["web"], "batch_size": 1, **settings}
    refused(lambda: build_evaluators(**given), *parts)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"eta": "big"}, ("eta: 'big'",)),
        ({"eta": NAN}, ("eta: nan",)),
        ({"eta": 10**400}, ("eta: 1000",)),  # beyond all floats
        ({"eta": INFINITY}, ("eta: inf",)),
        ({"eta": True}, ("eta: True",)),
        ({"smoothing": 2}, ("smoothing: 2", "at most 1")),
        ({"smoothing": None}, ("smoothing: None",)),
        ({"clip": "no"}, ("clip: 'no'",)),
        ({"max_change": "x"}, ("max_change: 'x'",)),
        ({"max_change": 0}, ("max_change: 0", "above 0")),
        ({"floor": "x"}, ("floor: 'x'",)),
        ({"floor": [0.1]}, ("floor: [0.1]",)),
        ({"floor": {"web": "x"}}, ("floor.web: 'x'",)),
        ({"floor": NAN}, ("floor: nan",)),
        ({"update_type": "adaptive"}, ("update_type 'adaptive'", "ado, constant, doremi")),
        ({"update_type": 5}, ("update_type '5'",)),
        ({"reference_losses": None}, ("reference_losses",)),
        ({"reference_losses": 5}, ("reference_losses: 5",)),
        ({"reference_losses": [1.0]}, ("reference_losses: [1.0]",)),
        ({"reference_losses": {"web": NAN}}, ("reference_losses.web: nan",)),
        ({"reference_losses": {"web": "low"}}, ("reference_losses.web: 'low'",)),
        ({"reference_losses": "none.json"}, ("none.json",)),
    ],
)
def test_callback(settings: dict[str, Any], parts: tuple[str, ...]) -> None:
    refused(lambda: DynamicBatchLoading(**{"reference_losses": {"web": 1.0}, **settings}), *parts)


@pytest.mark.parametrize("content", [[], {"losses": 5}, {}, 5, {"losses": {"web": None}}])
def test_files_of_reference_losses(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "reference.json"
    path.write_text(json.dumps(content))
    refused(lambda: DynamicBatchLoading(str(path)), "losses")


@pytest.mark.parametrize("n", [-1, 1.5, NAN, "5", None, True])
def test_apportion_refuses_what_is_no_number_of_samples(n: Any) -> None:
    refused(lambda: apportion(n, [0.5, 0.5]), f"n: {n!r}")
    refused(lambda: apportion_carried(n, [0.5, 0.5], (0, 0)), f"n: {n!r}")


@pytest.mark.parametrize("proportions", [[0.5, "x"], "x", None, [[0.5, 0.5]], [NAN, 0.5], []])
def test_apportion_refuses_what_is_no_distribution(proportions: Any) -> None:
    refused(lambda: apportion(5, proportions), "roportions")


@pytest.mark.parametrize("floor", [[0.1], "x", [NAN, 0.1], {"web": 0.1}])
def test_update_refuses_floors_of_other_shapes(floor: Any) -> None:
    refused(lambda: update_proportions([0.5, 0.5], [1.0, 1.0], [1.0, 1.0], floor=floor), "loor")
