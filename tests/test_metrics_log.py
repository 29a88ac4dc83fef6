"""The metrics log in real Composer runs: what a line holds, what a crash loses, what a resume repeats."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Callback, Evaluator, Trainer
from composer.core import State
from composer.loggers import InMemoryLogger, Logger
from composer.models import ComposerClassifier
from torch.utils.data import DataLoader, TensorDataset

from llmshearing.errors import InputError
from llmshearing.metrics_log import MetricsLog
from llmshearing.report.collect import read_metrics
from tests.forkserver import ForkServer


class LogEverywhere(Callback):
    """Logs at both ends of a batch, as algorithms and callbacks do, and can end the process's run like a crash."""

    def __init__(self, crash_at: int | None = None) -> None:
        self.crash_at = crash_at

    def batch_start(self, state: State, logger: Logger) -> None:
        logger.log_metrics({"start": state.timestamp.batch.value})

    def after_backward(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch.value == self.crash_at:
            raise RuntimeError("crash")

    def batch_end(self, state: State, logger: Logger) -> None:
        batch = state.timestamp.batch.value
        metrics: dict[str, Any] = {"end": torch.tensor(batch), "odd": [math.nan, math.inf, -math.inf][batch % 3]}
        logger.log_metrics(metrics)

    def eval_after_all(self, state: State, logger: Logger) -> None:
        logger.log_metrics({"after_eval": 1})


def make_trainer(folder: Path, *, batches: int = 6, crash_at: int | None = None, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    samples = TensorDataset(torch.randn(24, 5), torch.randint(0, 3, (24,)))
    model = ComposerClassifier(torch.nn.Linear(5, 3), num_classes=3)
    return Trainer(
        model=model,
        train_dataloader=DataLoader(samples, batch_size=4),
        eval_dataloader=Evaluator(label="held_out", dataloader=DataLoader(samples, batch_size=8)),
        eval_interval="2ba",
        optimizers=torch.optim.SGD(model.parameters(), lr=0.1),
        max_duration=f"{batches}ba",
        callbacks=LogEverywhere(crash_at),
        save_folder=str(folder / "checkpoints"),
        save_interval="2ba",
        device="cpu",
        progress_bar=False,
        log_to_console=False,
        seed=3,
        **{"loggers": MetricsLog(folder), **settings},
    )


def train(folder: Path, **settings: Any) -> None:
    trainer = make_trainer(folder, **settings)
    try:
        trainer.fit()
    finally:
        trainer.close()


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def by_batch(folder: Path) -> dict[int, dict[str, Any]]:
    merged: dict[int, dict[str, Any]] = {}
    for line in lines(folder):
        merged.setdefault(line["batch"], {}).update(line)
    return merged


def test_each_line_tells_of_the_batches_complete_by_then(tmp_path: Path) -> None:
    train(tmp_path)
    merged = by_batch(tmp_path)
    assert [batch for batch, line in merged.items() if "loss/train/total" in line] == [1, 2, 3, 4, 5, 6]
    assert [batch for batch, line in merged.items() if "metrics/held_out/MulticlassAccuracy" in line] == [2, 4, 6]
    assert [batch for batch, line in merged.items() if "after_eval" in line] == [2, 4, 6]
    assert all(line["start"] == batch - 1 and line["end"] == batch for batch, line in merged.items() if batch)


def test_values_are_the_numbers_that_composer_logged(tmp_path: Path) -> None:
    memory = InMemoryLogger()
    trainer = make_trainer(tmp_path, loggers=[MetricsLog(tmp_path), memory])
    trainer.fit()
    trainer.close()
    merged = by_batch(tmp_path)
    for stamp, loss in memory.data["loss/train/total"]:
        assert merged[stamp.batch.value + 1]["loss/train/total"] == loss
    for stamp, accuracy in memory.data["metrics/held_out/MulticlassAccuracy"]:
        assert merged[stamp.batch.value]["metrics/held_out/MulticlassAccuracy"] == float(accuracy)


def test_what_json_cannot_hold_stays_readable(tmp_path: Path) -> None:
    train(tmp_path, batches=3)
    merged = by_batch(tmp_path)
    assert [merged[batch]["odd"] for batch in (1, 2, 3)] == ["inf", "-inf", "nan"]
    curve = read_metrics(tmp_path / "metrics.jsonl")["odd"]  # as the report reads it
    assert curve.batches.tolist() == [1, 2, 3]
    assert curve.values[:2].tolist() == [math.inf, -math.inf]
    assert math.isnan(curve.values[2])


def test_what_is_no_number_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make_trainer(tmp_path, batches=1)
    with caplog.at_level(logging.WARNING, logger="llmshearing.metrics_log"):
        for _ in range(2):
            trainer.logger.log_metrics({"text": "abc", "vector": torch.ones(2), "fine": 1})  # type: ignore[dict-item]
    trainer.close()
    assert [record.args[0] for record in caplog.records] == ["text", "vector"]  # type: ignore[index]
    assert lines(tmp_path)[0]["fine"] == 1


def test_a_crash_keeps_every_complete_batch(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="crash"):
        train(tmp_path, crash_at=5)
    merged = by_batch(tmp_path)
    assert [batch for batch, line in merged.items() if "end" in line] == [1, 2, 3, 4, 5]


def test_lines_are_on_disk_when_a_checkpoint_is_saved(tmp_path: Path) -> None:
    seen: dict[int, set[str]] = {}

    class Watch(Callback):
        def batch_checkpoint(self, state: State, logger: Logger) -> None:
            batch = state.timestamp.batch.value
            seen[batch] = set(by_batch(tmp_path)[batch])

    trainer = make_trainer(tmp_path, batches=2)
    trainer.state.callbacks.insert(0, Watch())
    trainer.fit()
    trainer.close()
    assert {"loss/train/total", "end"} <= seen[1]
    assert {"loss/train/total", "end", "metrics/held_out/MulticlassAccuracy", "after_eval"} <= seen[2]


def test_a_resumed_run_leaves_the_curve_of_an_uninterrupted_one(tmp_path: Path) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train(straight)
    with pytest.raises(RuntimeError, match="crash"):
        train(resumed, crash_at=5)
    with (resumed / "metrics.jsonl").open("a") as file:
        file.write('{"batch": 6, "loss/tr')  # the line that a killed process was writing
    train(resumed, load_path=str(resumed / "checkpoints" / "ep0-ba4-rank0.pt"))

    def without_time(folder: Path) -> dict[int, dict[str, Any]]:
        return {
            batch: {key: value for key, value in line.items() if key != "time"}
            for batch, line in by_batch(folder).items()
        }

    assert without_time(resumed) == without_time(straight)
    # Composer itself logs some values twice, for instance at a batch's and an epoch's end.
    written = [
        Counter((line["batch"], key) for line in lines(folder) for key in line) for folder in (straight, resumed)
    ]
    assert written[0] == written[1]


def test_a_new_run_keeps_the_curve_of_an_older_one(tmp_path: Path) -> None:
    train(tmp_path, batches=4)
    older = (tmp_path / "metrics.jsonl").read_text()
    train(tmp_path, batches=2, save_overwrite=True)
    assert max(by_batch(tmp_path)) == 2
    (kept,) = tmp_path.glob("metrics.*.jsonl")
    assert kept.read_text() == older


def test_resuming_refuses_a_file_that_is_no_metrics_log(tmp_path: Path) -> None:
    train(tmp_path, batches=2)
    (tmp_path / "metrics.jsonl").write_text("something else\n")
    with pytest.raises(InputError, match=r"metrics.jsonl' is not a metrics log"):
        make_trainer(tmp_path, load_path=str(tmp_path / "checkpoints" / "ep0-ba2-rank0.pt"))


@pytest.mark.dist
def test_two_ranks_write_one_curve(forked: ForkServer, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, pathlib\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from tests.test_metrics_log import *\n"
        "from composer.utils import dist\n"
        "dist.initialize_dist('cpu')\n"
        "logger = MetricsLog(pathlib.Path(sys.argv[1]))\n"
        "samples = TensorDataset(torch.randn(24, 5), torch.randint(0, 3, (24,)))\n"
        "loader = DataLoader(samples, batch_size=4, sampler=dist.get_sampler(samples))\n"
        "trainer = Trainer(model=ComposerClassifier(torch.nn.Linear(5, 3), num_classes=3), train_dataloader=loader,\n"
        "                  max_duration='3ba', loggers=logger, callbacks=LogEverywhere(), device='cpu',\n"
        "                  progress_bar=False)\n"
        "trainer.fit()\n"
        "trainer.close()\n"
    )
    launcher = ["composer", "-n", "2", str(script), str(tmp_path / "run")]
    done = forked.run(launcher)
    assert done.returncode == 0, done.stdout + done.stderr
    repeats = Counter(line["batch"] for line in lines(tmp_path / "run") if "loss/train/total" in line)
    assert repeats == {1: 1, 2: 1, 3: 1}
