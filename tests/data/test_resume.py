"""States that are saved and loaded, and stages that begin where earlier ones ended."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmshearing.errors import InputError
from tests.data.helpers import Numbers, mixes, open_dataset, train, write_domain


@pytest.fixture
def expected(data: Path) -> list[Numbers]:
    """8 batches, two whole rounds."""
    return train(open_dataset(data), 8, after=mixes())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"proportions": {"web": 0.5, "code": 0.3, "books": 0.2}}, "The checkpoint's domains are"),
        (
            {"proportions": {"code": 0.4, "web": 0.4, "books": 0.2}},
            "^proportions is not what the checkpoint's run",
        ),
        ({"start": {"web": 3}}, "^start is not what the checkpoint's run began with"),
        ({"shuffle_seed": 3}, "^shuffle_seed: the checkpoint's is 9176, not 3, and another order would repeat"),
        (
            {"shuffle_block_size": 41},
            r"or shuffle_block_size \(41\) is not",
        ),
        ({"update_interval": 5}, "within a round of 4 batches of 4 samples, now set to 5 of 4"),
        ({"batch_size": 2}, "now set to 4 of 2"),
        ({"batch_size": 8, "update_interval": 2}, "now set to 2 of 8"),  # whose batches would cross the edge
    ],
)
def test_states_that_do_not_fit(data: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_dataset(data, **settings).load_state_dict(open_dataset(data).state_dict(12))


@pytest.mark.parametrize(
    "lacking", [("shuffle_block_size", "shards", "first"), ("shuffle_block_size", "shards", "first", "owed")]
)
def test_states_of_earlier_versions_go_on(data: Path, expected: list[Numbers], lacking: tuple[str, ...]) -> None:
    dataset = open_dataset(data)
    state = {key: value for key, value in dataset.state_dict(12).items() if key not in lacking}
    dataset.load_state_dict(state)
    assert train(dataset, 1, after=mixes()) == expected[3:4]


def test_without_sub_streams_a_state_has_just_what_earlier_versions_saved(data: Path) -> None:
    """A sharded checkpoint has to hold all that the run which goes on from it would save."""
    now, before = (set(open_dataset(data, sub_streams=count).state_dict(12)) for count in (16, 1))
    assert now - before == {"sub_streams", "lanes"}
    assert before == {
        "round", "sample", "sample_in_round", "update_interval", "global_batch_size", "shuffle_seed", "data", "domains",
        "shuffle_block_size", "shards", "first", "proportions", "samples_used", "owed",
    }  # fmt: skip


def test_data_prepared_again_with_the_same_sizes_is_noticed(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "web")
    write_domain(tmp_path / "data" / "web", 5, 200)
    with pytest.raises(InputError, match="The shards of web are not those of the checkpoint"):
        open_dataset(tmp_path / "data").load_state_dict(open_dataset(data).state_dict(12))


@pytest.fixture
def sheared(data: Path, tmp_path: Path) -> Path:
    """What ``convert shear`` records of a pruning run over :func:`data`."""
    state = open_dataset(data).state_dict(12)
    by_domain = {name: dict(zip(state["domains"], state[name], strict=True)) for name in ("samples_used", "shards")}
    order = {"shuffle_seed": 9176, "shuffle_block_size": 40, "shards": by_domain["shards"]}
    path = tmp_path / "shearing.json"
    path.write_text(json.dumps({"samples_used": by_domain["samples_used"], "order": order}))
    return path


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shuffle_seed": 3}, "^shuffle_seed: 3 is not that of the stage whose samples .* counts, 9176"),
        ({"shuffle_block_size": 80}, "^shuffle_block_size: 80 is not that of the stage"),
    ],
)
def test_a_start_in_another_order_is_refused(data: Path, sheared: Path, settings: dict[str, Any], message: str) -> None:
    assert sum(open_dataset(data, start=str(sheared)).samples_used(0).values()) == 12
    with pytest.raises(InputError, match=message):
        open_dataset(data, start=str(sheared), **settings)


def test_a_start_of_other_data_is_refused_and_an_old_one_warns(
    data: Path, make_data: Callable[..., Path], sheared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = make_data(code=301, web=200, books=100)
    with pytest.raises(InputError, match="^start: the shards of domain 'code' are not those whose samples"):
        open_dataset(other, start=str(sheared))
    record = json.loads(sheared.read_text())
    sheared.write_text(json.dumps({"samples_used": record["samples_used"]}))
    with caplog.at_level(logging.WARNING, logger="llmshearing"):
        open_dataset(other, start=str(sheared))
    assert "did not record the order" in caplog.text


def test_round_size_may_change_between_rounds(
    data: Path, expected: list[Numbers], caplog: pytest.LogCaptureFixture
) -> None:
    first = open_dataset(data)
    train(first, 4, after=mixes())
    second = open_dataset(data, update_interval=2, batch_size=8)
    second.load_state_dict(first.state_dict(16))
    assert len(second.rounds._newest.counts) == 3
    assert second.rounds._newest.size == 16
    assert "Rounds are 2 batches of 8 samples from here on; the checkpoint's were 4 batches of 4" in caplog.text
    rows = [row for batch in train(second, 2, after=mixes()) for row in batch]
    assert rows == [row for batch in expected[4:8] for row in batch]
