"""Datasets whose domains are large enough to be cut into sub-streams: ranks, workers, restarts, stages."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from streaming.base.world import World

from llmshearing.data.dataset import DynamicStreamingDataset
from llmshearing.data.loaders import build_dynamic_streaming_dataloader
from llmshearing.data.start import order_of
from llmshearing.dry_run.transfers import Transfers
from llmshearing.errors import InputError
from tests.data.helpers import Numbers, mixes, numbers, open_dataset, train

BATCH, INTERVAL = 16, 12
SETTINGS = {"batch_size": BATCH, "update_interval": INTERVAL, "shuffle_block_size": 400}


@pytest.fixture
def large(make_data: Callable[..., Path]) -> Path:
    """Domains of 8, 2 and 1 sub-streams."""
    return make_data(code=8300, web=2100, books=200)


@pytest.fixture
def expected(large: Path) -> list[Numbers]:
    """30 batches, 2 rounds and a half."""
    dataset = open_dataset(large, **SETTINGS)
    assert [order.sub_streams for order in dataset.order.orders] == [8, 2, 1]
    assert dataset.rounds.at(0).lanes == 8
    return train(dataset, 30, after=mixes())


def on_ranks(dataset: DynamicStreamingDataset, ranks: int, batches: int, *, replication: int = 1) -> list[Numbers]:
    """The next global batches of ``ranks`` that each read for themselves, with a mix that is held."""
    dataset.rounds.hold()
    unique, rows = ranks // replication, list[list[Numbers]]()
    for rank in range(ranks):
        world = World(num_nodes=ranks, ranks_per_node=1, workers_per_rank=1, worker=rank)
        dataset._parallel_rank_world = world.replicate(replication)
        dataset._rank_batch_size = BATCH // unique
        taken = list(islice(dataset, batches * (BATCH // unique)))
        read = numbers({"input_ids": [sample["input_ids"] for sample in taken]})
        rows.append([read[begin : begin + BATCH // unique] for begin in range(0, len(read), BATCH // unique)])
    for rank in range(ranks):
        assert rows[rank] == rows[rank - rank % replication]
    return [[row for rank in rows[::replication] for row in rank[batch]] for batch in range(batches)]


@pytest.mark.parametrize(("ranks", "replication"), [(2, 1), (4, 1), (16, 1), (4, 2), (8, 4), (3, 3)])
def test_ranks_and_groups_of_them_do_not_matter(large: Path, ranks: int, replication: int) -> None:
    whole = on_ranks(open_dataset(large, **SETTINGS), 1, 20)
    assert on_ranks(open_dataset(large, **SETTINGS), ranks, 20, replication=replication) == whole


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_do_not_matter(large: Path, expected: list[Numbers], workers: int) -> None:
    assert train(open_dataset(large, **SETTINGS), 30, after=mixes(), num_workers=workers) == expected


def test_a_round_holds_its_shares_and_no_sample_twice(large: Path, expected: list[Numbers]) -> None:
    rows = [row for batch in expected for row in batch]
    assert len(set(rows)) == len(rows)
    dataset = open_dataset(large, **SETTINGS)
    for plan in (dataset.rounds.at(0), dataset.rounds.at(0).following(next(mixes()))):
        counts = Counter(domain for domain, _ in rows[plan.begin : plan.end])
        assert [counts[index] for index in range(3)] == plan.counts.tolist()
        assert (np.abs(plan.counts - plan.size * np.array(plan.proportions)) <= 16).all()


@pytest.mark.parametrize("stop", [0, 1, 7, 12, 13, 23])
def test_resumes_at_any_batch_on_other_ranks(large: Path, stop: int) -> None:
    whole = on_ranks(open_dataset(large, **SETTINGS), 1, 30)
    first = open_dataset(large, **SETTINGS)
    first.rounds.hold()
    state = json.loads(json.dumps(first.state_dict(BATCH * stop)))
    used = Counter(domain for batch in whole[:stop] for domain, _ in batch)
    assert state["samples_used"] == [used[index] for index in range(3)]
    second = open_dataset(large, **SETTINGS)
    second.load_state_dict(state)
    assert second.state_dict(BATCH * stop) == state
    assert on_ranks(second, 4, 6) == whole[stop : stop + 6]


def sheared(path: Path, state: dict[str, Any]) -> str:
    """What ``convert shear`` records of a stage."""
    used = dict(zip(state["domains"], state["samples_used"], strict=True))
    path.write_text(json.dumps({"samples_used": used, "order": order_of(state)}))
    return str(path)


def test_stages_that_end_within_rounds_use_every_sample_once(large: Path, tmp_path: Path) -> None:
    """Three of them, of several sizes of batches; the last goes on through what is left of the pass."""
    start, seen = None, list[tuple[int, int]]()
    for number, (batches, batch, interval) in enumerate([(17, 16, 12), (5, 32, 6), (23, 8, 48), (60, 64, 16)]):
        sizes = {**SETTINGS, "batch_size": batch, "update_interval": interval}
        dataset = open_dataset(large, **sizes, start=start, proportions={"code": 0.8, "web": 0.19, "books": 0.01})
        dataset.rounds.hold()
        seen += [row for taken in train(dataset, batches) for row in taken]
        assert len(set(seen)) == len(seen)
        state = json.loads(json.dumps(dataset.state_dict(batches * batch)))
        resumed = open_dataset(large, **sizes, start=start, proportions={"code": 0.8, "web": 0.19, "books": 0.01})
        resumed.load_state_dict(state)
        assert resumed.state_dict(batches * batch) == state
        start = sheared(tmp_path / f"{number}.json", state)
    assert len(seen) > 4000
    assert state["samples_used"] == [Counter(domain for domain, _ in seen)[index] for index in range(3)]


def test_what_a_stage_did_not_finish_is_part_of_a_runs_beginning(large: Path, tmp_path: Path) -> None:
    first = open_dataset(large, **SETTINGS)
    start = sheared(tmp_path / "a.json", first.state_dict(BATCH * 5))
    state = open_dataset(large, **SETTINGS, start=start).state_dict(0)
    record = json.loads(Path(start).read_text())
    record["order"]["unfinished"] = []
    Path(start).write_text(json.dumps(record))
    with pytest.raises(InputError, match="^start is not what the checkpoint's run began with"):
        open_dataset(large, **SETTINGS, start=start).load_state_dict(state)
    record["order"]["unfinished"] = [{"code": {"begin": 0}}]
    Path(start).write_text(json.dumps(record))
    with pytest.raises(InputError, match="has order.unfinished in a form that this version does not know"):
        open_dataset(large, **SETTINGS, start=start)


def test_states_from_before_sub_streams_go_on_with_one(large: Path, tmp_path: Path) -> None:
    old = open_dataset(large, **SETTINGS, sub_streams=1).state_dict(BATCH * 5)
    before = on_ranks(open_dataset(large, **SETTINGS, sub_streams=1), 1, 8)
    assert "sub_streams" not in old
    with pytest.raises(InputError, match=r"^sub_streams: the checkpoint's is 1, not 16, .* Set sub_streams to 1, or"):
        open_dataset(large, **SETTINGS).load_state_dict(old)
    resumed = open_dataset(large, **SETTINGS, sub_streams=1)
    resumed.load_state_dict(old)
    assert on_ranks(resumed, 2, 3) == before[5:]
    start = sheared(tmp_path / "old.json", old)
    with pytest.raises(InputError, match=r"^sub_streams: 16 is not that of the stage whose samples .*, 1, so they"):
        open_dataset(large, **SETTINGS, start=start)
    assert train(open_dataset(large, **SETTINGS, sub_streams=1, start=start), 1)[0]


def test_more_sub_streams_than_the_data_has_are_the_same(large: Path, tmp_path: Path) -> None:
    state = open_dataset(large, **SETTINGS, sub_streams=64).state_dict(BATCH * 5)
    open_dataset(large, **SETTINGS).load_state_dict(state)  # none of its domains has more than 8
    open_dataset(large, **SETTINGS, start=sheared(tmp_path / "a.json", state))
    with pytest.raises(InputError, match="^sub_streams: the checkpoint's is 64, not 4"):
        open_dataset(large, **SETTINGS, sub_streams=4).load_state_dict(state)


def test_stop_ends_before_the_first_round_that_repeats(large: Path) -> None:
    shares = {"code": 0.1, "web": 0.9, "books": 0.0}
    dataset = open_dataset(large, **SETTINGS, proportions=shares, on_exhausted="stop")
    dataset.rounds.hold()
    rows = [row for batch in train(dataset, 1000) for row in batch]
    web = [row for row in rows if row[0] == 1]
    assert len(web) == len(set(web)) == dataset.rounds.at(len(rows)).used[1]
    assert 2100 - 2 * 0.9 * BATCH * INTERVAL < len(web) <= 2100


def test_each_rank_of_a_group_counts_its_part(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def counts(rank: int) -> tuple[float, int]:
        monkeypatch.setattr("llmshearing.data.loaders.dist.get_global_rank", lambda: rank)
        settings = {"local": str(large), "proportions": {"code": 0.5, "web": 0.5}, "update_interval": 4}
        monkeypatch.setattr("llmshearing.data.arguments.get_world_size", lambda: 6)
        monkeypatch.setattr(World, "detect", classmethod(lambda cls: cls(6, 1, 1, rank)))
        spec = build_dynamic_streaming_dataloader(None, 4, {**settings, "replication": 3}, num_workers=0)
        assert spec.dataloader.dataset.global_batch_size == 8
        batch = {"input_ids": torch.zeros(4, 7)}
        return spec.get_num_samples_in_batch(batch), spec.get_num_tokens_in_batch(batch)

    found = [counts(rank) for rank in range(3)]
    assert sum(samples for samples, _ in found) == pytest.approx(4)
    assert sum(tokens for _, tokens in found) == 28


def test_a_dry_run_says_what_nodes_download(large: Path, tmp_path: Path) -> None:
    """As many bytes as the shards that are read, of which the halves of two nodes have hardly one in common."""
    dataset = open_dataset(tmp_path / "a", **SETTINGS, remote=str(large))
    dataset.rounds.hold()
    plan, read = dataset.rounds.at(0), list[np.ndarray]()
    for _ in range(8):
        read.append(dataset.shards_of(dataset.order.sample_ids(plan, np.arange(plan.size))).reshape(-1, 2, BATCH // 2))
        plan = plan.following()
    sizes = np.array([shard.get_raw_size() for shard in dataset.shards])
    nodes = [sizes[np.unique(np.concatenate(read)[:, node])].sum() / 1e9 for node in range(2)]
    line = Transfers(dataset, 8 * INTERVAL, nodes=2).lines()
    assert len(line) == 1
    form = r"download +at most (\S+) GB to each of 2 nodes .*, (\S+) GB on its disk: shards .* (\S+) times"
    told = re.match(form, line[0])
    assert told is not None
    assert max(nodes) <= float(told[1]) * 1.01 < 1.1 * max(nodes)
    assert told[1] == told[2]
    assert float(told[3]) == pytest.approx(1.0, abs=0.2)
    assert "which several nodes download each: give each domain" in Transfers(dataset, 96, nodes=64).lines()[1]
    few = open_dataset(tmp_path / "b", **SETTINGS, remote=str(large), sub_streams=2, cache_limit="1gb")
    lines = Transfers(few, 96, nodes=64).lines()
    assert "(cache_limit: 1.07 GB)" in lines[0]
    assert "read in 2 parts" in lines[1]
    assert lines[1].endswith("raise train_loader.dataset.sub_streams (2)")
    assert Transfers(open_dataset(large, **SETTINGS), 96, nodes=2).lines() == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sub_streams": 3}, "^sub_streams: 3 is not a power of two. Set it to one, such as 16"),
        ({"sub_streams": 0}, "^sub_streams: 0 is not a whole number of at least 1"),
        ({"sub_streams": True}, "^sub_streams: True is not"),
        ({"replication": 0}, "^replication: 0 is not a whole number"),
        ({"replication": 2}, "^replication: 2 does not divide the 1 ranks into groups"),
    ],
)
def test_settings_that_do_not_fit(large: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_dataset(large, **{**SETTINGS, **settings})
