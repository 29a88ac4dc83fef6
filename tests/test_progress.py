"""The line on how training goes: when it is written, and that its figures are true."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from composer import Evaluator
from composer.core import Callback, State
from composer.loggers import InMemoryLogger, Logger
from torch.utils.data import DataLoader

from llmshearing import TargetedPruning
from llmshearing.duration import in_words
from llmshearing.progress import ProgressLine
from tests.training import TARGET, dataset, logged, make_trainer

Lines = Callable[..., list[str]]


class Wait(Callback):
    """Batches take this many seconds, and evaluations as many."""

    def __init__(self, batch: float, evaluation: float = 0.0) -> None:
        self.batch, self.evaluation = batch, evaluation

    def batch_start(self, state: State, logger: Logger) -> None:
        time.sleep(self.batch)

    def eval_batch_start(self, state: State, logger: Logger) -> None:
        time.sleep(self.evaluation)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Lines:
    """What a run logs."""

    def run(seconds: float, **settings: object) -> list[str]:
        monkeypatch.setattr(ProgressLine, "SECONDS", seconds)
        with caplog.at_level(logging.INFO, logger="llmshearing.progress"):
            trainer = make_trainer(loggers=[InMemoryLogger(), ProgressLine()], **settings)  # type: ignore[arg-type]
            trainer.fit()
            trainer.close()
        run.trainer = trainer  # type: ignore[attr-defined]
        return [record.message for record in caplog.records if record.name == "llmshearing.progress"]

    return run


def test_the_first_and_the_last_batch_have_a_line(lines: Lines) -> None:
    first, last = lines(1e6, duration="7ba")
    assert re.fullmatch(r"batch 1, 14%: loss \d\.\d{3}, [\d,]+ tokens/s, \d+ s left", first)
    assert re.fullmatch(r"batch 7, 100%: loss \d\.\d{3}, [\d,]+ tokens/s", last)
    losses = logged(lines.trainer, "loss/train/total")  # type: ignore[attr-defined]
    assert [f"loss {losses[0]:.3f}", f"loss {losses[-1]:.3f}"] == [
        line.split(": ")[1].split(",")[0] for line in (first, last)
    ]


def test_all_between_have_one_where_batches_are_slow(lines: Lines) -> None:
    assert [line.split(",")[0] for line in lines(0.0, duration="4ba")] == [f"batch {number}" for number in (1, 2, 3, 4)]


def test_pruning_says_how_far_the_target_is(lines: Lines) -> None:
    pruning = TargetedPruning(TARGET, warmup="2ba")
    found = lines(0.0, duration="3ba", algorithms=[pruning])
    distances = logged(lines.trainer, "pruning/distance")  # type: ignore[attr-defined]
    assert [re.findall(r"([\d.]+%) from the target shape", line) for line in found] == [[f"{x:.1%}"] for x in distances]


def test_speed_is_without_evaluation_and_the_time_left_is_with_it(lines: Lines) -> None:
    held_out = [
        Evaluator(label=name, dataloader=DataLoader(dataset(sequences=8), batch_size=8))  # type: ignore[arg-type]
        for name in ("code", "wiki")
    ]
    found = lines(
        0.0, duration="4ba", callbacks=[Wait(0.2, evaluation=1.0)], eval_dataloader=held_out, eval_interval="1ba"
    )
    evaluated = [line for line in found if "evaluated" in line]
    assert len(evaluated) == 4
    assert re.fullmatch(r"batch 1, evaluated: code (\d\.\d{3}), wiki \1, mean \1", evaluated[0])
    third = next(line for line in found if line.startswith("batch 3, 75%"))
    speed, left = re.findall(r"([\d,]+) tokens/s, (\d+) s left", third)[0]
    assert 8 * 16 / (2 * 1.0 + 0.2) < float(speed.replace(",", "")) < 8 * 16 / 0.2
    assert int(left) >= 1  # a batch and some of its evaluations


def test_a_run_that_goes_on_counts_what_it_does_itself(lines: Lines, tmp_path: Path) -> None:
    lines(1e6, duration="4ba", folder=tmp_path, save_interval="2ba", save_filename="b{batch}.pt")
    found = lines(0.0, duration="6ba", load_path=str(tmp_path / "b2.pt"), callbacks=[Wait(0.8)], schedulers=None)[2:]
    assert [line.split(":")[0] for line in found] == ["batch 3, 50%", "batch 4, 67%", "batch 5, 83%", "batch 6, 100%"]
    left = [int(re.findall(r"(\d+) s left", line)[0]) for line in found[:-1]]
    assert left[0] >= 2  # three batches of 0.8 seconds, and not a third of that
    assert left == sorted(left, reverse=True)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (3725, "1 h 2 min"), (93_600, "1 d 2 h")]
)
def test_durations_have_two_units(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
