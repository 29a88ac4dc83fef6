"""What is checked and said before the first batch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from composer.core import Time
from torch.utils.data import DataLoader

from llmshearing.data.callback import DynamicBatchLoading
from llmshearing.errors import InputError
from tests.data.conftest import Make
from tests.data.training import REFERENCES


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"steer": DynamicBatchLoading({**REFERENCES, "wbe": 1.0})},
            "reference losses 'wbe'. Did you mean 'web'",
        ),
        ({"steer": DynamicBatchLoading({"code": 4.0, "web": 4.0})}, "reference losses lack domain 'books'"),
        ({"eval_interval": "3ba"}, "'code' is not evaluated at batch 4, where a round of 4 batches ends"),
        ({"eval_interval": "8ba"}, "not evaluated at batch 4"),
        ({"eval_interval": "0ba"}, "not evaluated at batch 4"),
        ({"eval_interval": "96sp"}, "not evaluated at batch 4"),
        ({"dataset": {"on_exhausted": "stop", "start": {"web": 190}}}, "web run out within the first round"),
        ({"train_subset_num_batches": 5}, "one endless epoch"),
        ({"steer": DynamicBatchLoading(REFERENCES, floor={"wbe": 0.1})}, "floor 'wbe'. Did you mean 'web'"),
        ({"steer": DynamicBatchLoading(REFERENCES, floor=0.4)}, "floors must be at least 0 and sum to at most 1"),
    ],
)
def test_what_does_not_fit_is_said_before_the_first_batch(make: Make, settings: dict[str, Any], message: str) -> None:
    trainer, recorder = make(**settings)
    with pytest.raises(InputError, match=message):
        trainer.fit()
    assert recorder.batches == []


@pytest.mark.parametrize("interval", ["1ba", "2ba", "48sp", "384tok"])
def test_intervals_that_meet_every_round_are_accepted(make: Make, interval: str) -> None:
    trainer, recorder = make(eval_interval=interval, duration="9ba")
    trainer.fit()
    assert len(recorder.batches) == 9


def test_a_loader_with_another_batch_size_is_refused(make: Make) -> None:
    trainer, _ = make()
    dataset = trainer.state.train_dataloader.dataset
    trainer.state.train_dataloader = DataLoader(dataset, batch_size=3)
    with pytest.raises(InputError, match="batches of 3 samples, the dataset has 12 per rank"):
        trainer.fit()


def test_a_cache_too_small_for_the_shuffled_blocks_is_reported(
    make: Make, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    remote = {"local": str(tmp_path), "remote": str(data), "cache_limit": 20_000, "shuffle_block_size": 300}
    trainer, _ = make(duration="1ba", dataset=remote)
    with caplog.at_level(logging.WARNING):
        trainer.fit()
    assert any("more than cache_limit (2e+04)" in message for message in caplog.messages)


@pytest.mark.parametrize("duration", ["1ep", "2iter"])
def test_a_duration_in_endless_epochs_is_refused(make: Make, duration: str) -> None:
    with pytest.raises(InputError, match=f"^max_duration: '{duration}' never comes"):
        make(duration=duration)


def test_a_missing_evaluator_is_named(make: Make) -> None:
    trainer, _ = make()
    trainer.state.evaluators = [e for e in trainer.state.evaluators if e.label != "web"]
    with pytest.raises(InputError, match="Domain 'web' has no evaluator"):
        trainer.fit()


def test_what_can_run_out_is_said_with_the_batch(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    steer = DynamicBatchLoading(update_type="constant")
    trainer, _ = make(steer=steer, dataset={"start": {"books": 52}}, duration="1000ba", eval_interval="0ba")
    trainer.state.max_duration = Time.from_timestring("24ba")
    with caplog.at_level(logging.WARNING):
        trainer.fit()
    assert [m for m in caplog.messages if "can run out" in m] == [
        "Domain 'books' has 48 samples left and can run out from batch 20 on (at the present proportion: 20). Then: "
        "repeat."
    ]
