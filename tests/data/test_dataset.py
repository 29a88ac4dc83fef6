"""Composition and order of the batches, with real DataLoader workers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from llmshearing.data.carry import apportion_carried
from llmshearing.data.loaders import DynamicDataLoader
from llmshearing.errors import InputError
from tests.data.helpers import Numbers, mixes, numbers, open_dataset, train

LOADERS: list[dict[str, Any]] = [
    {"num_workers": 1},
    {"num_workers": 2, "prefetch_factor": 5},
    {"num_workers": 3, "persistent_workers": True},  # rounds of 4 batches: no multiple of the workers
    {"num_workers": 4, "prefetch_factor": 1},
]


@pytest.fixture
def expected(data: Path) -> list[Numbers]:
    """18 batches, 4 whole rounds and a half, read without workers."""
    return train(open_dataset(data), 18, after=mixes())


def test_each_round_holds_its_shares_and_what_is_owed_and_no_sample_twice(data: Path, expected: list[Numbers]) -> None:
    shares, owed, after = [0.5, 0.3, 0.2], (0, 0, 0), mixes()
    seen: set[tuple[int, int]] = set()
    for begin in range(0, 16, 4):
        rows = [row for batch in expected[begin : begin + 4] for row in batch]
        counts = Counter(domain for domain, _ in rows)
        due, owed = apportion_carried(16, shares, owed)
        assert [counts[domain] for domain in range(3)] == due.tolist()
        assert seen.isdisjoint(rows)
        assert len(set(rows)) == 16
        seen.update(rows)
        shares = next(after)


def test_samples_say_their_domain(data: Path) -> None:
    dataset = open_dataset(data)
    for _, sample in zip(range(16), dataset, strict=False):
        assert sample["domain"] == sample["input_ids"][0]
        assert sample["domain"].shape == ()
        assert sample["input_ids"].tolist() == sample["labels"].tolist()


@pytest.mark.parametrize("loader", LOADERS, ids=lambda loader: f"{loader['num_workers']} workers")
def test_workers_do_not_matter(data: Path, expected: list[Numbers], loader: dict[str, Any]) -> None:
    assert train(open_dataset(data), 18, after=mixes(), **loader) == expected


@pytest.mark.slow
def test_a_plain_torch_loader_and_spawned_workers_get_the_same(data: Path, expected: list[Numbers]) -> None:
    dataset = open_dataset(data)
    after, batches = mixes(), []
    for batch in DataLoader(dataset, batch_size=4, num_workers=2, multiprocessing_context="spawn"):
        batches.append(numbers(batch))
        if len(batches) % 4 == 0:
            dataset.rounds.update(next(after))
        if len(batches) == 10:
            dataset.rounds.close()
            break
    assert batches == expected[:10]


def test_the_seed_decides_the_order(data: Path, expected: list[Numbers]) -> None:
    assert train(open_dataset(data), 4, after=mixes()) == expected[:4]
    assert train(open_dataset(data, shuffle_seed=1), 4, after=mixes()) != expected[:4]


@pytest.mark.parametrize("workers", [0, 2])
def test_resumes_at_any_batch(data: Path, expected: list[Numbers], workers: int) -> None:
    for stop in range(13):
        first = open_dataset(data)
        after = mixes()
        if stop:
            train(first, stop, after=after)
        state = json.loads(json.dumps(first.state_dict(4 * stop)))
        second = open_dataset(data)
        second.load_state_dict(state)
        assert second.state_dict(4 * stop) == state == second.state_dict(0, from_beginning=False)
        if stop % 4 == 3 or workers == 0:  # workers are slow to start
            assert train(second, 5, after=after, num_workers=workers) == expected[stop : stop + 5], stop


def test_a_restart_may_restart(data: Path, expected: list[Numbers]) -> None:
    after, sample, batches = mixes(), 0, []
    state = open_dataset(data).state_dict(0)
    for count in (3, 1, 2, 5, 1, 6):
        dataset = open_dataset(data)
        dataset.load_state_dict(state)
        batches += train(dataset, count, after=after)
        sample += 4 * count
        state = dataset.state_dict(sample)
    assert batches == expected


@pytest.mark.parametrize("batches", [1, 3, 4, 7])
def test_used_counts_are_those_of_the_consumed_batches(data: Path, batches: int) -> None:
    dataset = open_dataset(data)
    taken = train(dataset, batches, after=mixes(), num_workers=2)
    counts = Counter(domain for batch in taken for domain, _ in batch)
    assert dataset.samples_used(4 * batches) == {d: counts[i] for i, d in enumerate(dataset.domains)}


def test_start_goes_on_behind_an_earlier_stage(data: Path) -> None:
    first = open_dataset(data)
    used = {row for batch in train(first, 7, after=mixes()) for row in batch}
    second = open_dataset(data, start=first.samples_used(28))
    more = [row for batch in train(second, 20, after=mixes()) for row in batch]
    assert used.isdisjoint(more)
    assert len(set(more)) == 80
    assert sum(second.samples_used(80).values()) == 108


def test_state_is_small_with_many_domains(make_data: Callable[..., Path]) -> None:
    names = [f"domain_{number:02d}" for number in range(40)]
    root = make_data(**dict.fromkeys(names, 2))
    dataset = open_dataset(
        root,
        proportions=dict(zip(names, np.random.default_rng(0).dirichlet(np.ones(40)), strict=True)),
        start=dict.fromkeys(names, 10**10),
    )
    dataset.rounds.hold()
    assert len(json.dumps(dataset.state_dict(16 * 10**9 + 8))) < 4096  # late in a run as long as any, within a round


def test_a_held_mix_needs_no_updates(data: Path) -> None:
    dataset = open_dataset(data)
    dataset.rounds.hold()
    batches = train(dataset, 12, num_workers=3)
    reference = train(open_dataset(data), 12, after=[[0.5, 0.3, 0.2]] * 3)
    assert batches == reference
    assert dataset.state_dict(40)["sample_in_round"] == 8


def test_every_pass_over_a_domain_is_whole(make_data: Callable[..., Path]) -> None:
    root = make_data(tiny=7, small=50)
    dataset = open_dataset(root, proportions={"tiny": 0.5, "small": 0.5})
    dataset.rounds.hold()
    rows = [row for batch in train(dataset, 100) for row in batch]
    tiny = [number for domain, number in rows if domain == 0]
    assert len(tiny) == 200
    assert dataset.samples_used(400) == {"tiny": 200, "small": 200}
    passes = np.array(tiny[:196]).reshape(28, 7)
    assert (np.sort(passes, axis=1) == np.arange(7)).all()
    assert len({tuple(row) for row in passes.tolist()}) > 20  # each in another order
    assert set(Counter(number for domain, number in rows if domain == 1).values()) == {4}


def test_stop_ends_before_the_first_round_that_repeats(make_data: Callable[..., Path]) -> None:
    root = make_data(tiny=20, small=50)
    for workers in (0, 2):
        dataset = open_dataset(root, proportions={"tiny": 0.5, "small": 0.5}, on_exhausted="stop")
        dataset.rounds.hold()
        rows = [row for batch in train(dataset, 100, num_workers=workers) for row in batch]
        assert len(rows) == len(set(rows)) == 32  # two rounds of 8 + 8; a third would need 24 of the 20


def test_long_runs_repeat_nothing_within_a_pass_and_shuffle_each(make_data: Callable[..., Path]) -> None:
    sizes = {"a": 700, "b": 1100, "c": 400}
    settings = {"proportions": dict.fromkeys(sizes, 1 / 3), "update_interval": 25, "shuffle_block_size": 4096}
    batches = train(open_dataset(make_data(**sizes), **settings), 2000, after=mixes(), num_workers=3)
    rows = [row for batch in batches for row in batch]
    statistic, degrees = 0.0, 0
    for domain, size in enumerate(sizes.values()):
        drawn = np.array([number for index, number in rows if index == domain])
        whole = len(drawn) // size
        assert whole >= 2
        passes = drawn[: whole * size].reshape(whole, size)
        assert (np.sort(passes, axis=1) == np.arange(size)).all()
        assert len(set(drawn[whole * size :].tolist())) == len(drawn) - whole * size
        for order in passes:
            where = np.zeros((10, 10))  # tenths of the samples by tenths of the pass
            np.add.at(where, (order * 10 // size, np.arange(size) * 10 // size), 1)
            statistic += ((where - size / 100) ** 2).sum() / (size / 100)
            degrees += 81
    assert abs(statistic - degrees) < 5 * np.sqrt(2 * degrees)


def test_long_runs_draw_every_sample_equally(make_data: Callable[..., Path]) -> None:
    root = make_data(a=64, b=256)
    where = np.zeros((64, 8))
    for seed in range(60):
        dataset = open_dataset(root, proportions={"a": 0.5, "b": 0.5}, shuffle_seed=seed, update_interval=8)
        dataset.rounds.hold()
        rows = [row for batch in train(dataset, 32) for row in batch]
        assert len(set(rows)) == 128  # all of a, and a quarter of b, none twice
        for place, (domain, number) in enumerate(rows):
            if domain == 0:
                where[number, place // 16] += 1
    expected = 60 / 8
    statistic = ((where - expected) ** 2 / expected).sum()
    degrees = 63 * 7
    assert abs(statistic - degrees) < 5 * np.sqrt(2 * degrees)


@pytest.mark.parametrize("workers", [0, 3])
def test_missing_update_is_an_error_in_the_training_process(data: Path, workers: int) -> None:
    batches = iter(DynamicDataLoader(open_dataset(data), batch_size=4, num_workers=workers))
    assert len([next(batches) for _ in range(4)]) == 4
    with pytest.raises(InputError, match="Round 0 is over at sample 16"):
        next(batches)


def test_with_a_plain_loader_a_missing_update_times_out(data: Path) -> None:
    dataset = open_dataset(data, update_timeout=0.5)
    with pytest.raises(InputError, match=r"update_timeout: 0\.5 s"):
        list(DataLoader(dataset, batch_size=4, num_workers=1))


def test_it_has_no_length(data: Path) -> None:
    with pytest.raises(TypeError):
        len(open_dataset(data))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"proportions": {"code": 0.5, "wbe": 0.5}}, "There is no data in '.*wbe'"),
        ({"proportions": {"code": 0.5, "web": 0.6}}, "sum to 1.1"),
        ({"on_exhausted": "stopp"}, "Did you mean 'stop'"),
        ({"cache_limit": "1gb"}, "their only copy"),
        ({"local": {"code": "x", "web": "y", "bocks": "z"}}, "has no domain 'books'"),
        ({"seq_len": 9}, "sequences of 8 tokens, where 9 are expected"),
        ({"start": {"cod": 3}}, "Did you mean 'code'"),
        ({"start": {"code": -3}}, "^start.code: -3 is not"),
        ({"update_interval": 0}, "update_interval"),
    ],
)
def test_settings_that_do_not_fit(data: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_dataset(data, **settings)
