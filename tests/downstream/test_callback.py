"""Downstream tasks during training: what is logged, and that training does not notice."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composer.core import Callback, State
from composer.loggers import Logger

from llmshearing import TargetedPruning
from llmshearing.downstream.callback import DownstreamEvaluation
from llmshearing.downstream.evaluate import downstream
from llmshearing.errors import InputError
from llmshearing.registry import build
from tests.conftest import REPOSITORY
from tests.downstream.helpers import save, words, write_generation
from tests.forkserver import ForkServer
from tests.training import TARGET, KillAt, Killed, logged, make_trainer

pytest.importorskip("lm_eval", reason="no lm-eval: pip install 'llmshearing[eval]'")

ACCURACY = "downstream/choices_one/acc"


class Watch(Callback):
    """States of the generators and modes of the modules after each batch's callbacks."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """After ``batch_end``."""
        modes = [module.training for module in state.model.modules()]
        self.seen.append((random.random(), np.random.random(), torch.rand(1).item(), modes))


def trained(*callbacks: Callback, algorithms: Any = (), **settings: Any) -> Any:
    trainer = make_trainer(algorithms, callbacks=[*callbacks], duration="5ba", **settings)
    trainer.state.model.tokenizer = words()
    trainer.fit()
    return trainer


def evaluation(world: dict[str, str], **settings: Any) -> DownstreamEvaluation:
    return DownstreamEvaluation(world["data"], **{"interval": "2ba", "limit": 8, **settings})


def test_losses_are_the_same_to_the_last_bit_with_and_without_it(world: dict[str, str]) -> None:
    watches = Watch(), Watch()
    without = trained(watches[0])
    with_it = trained(evaluation(world), watches[1])
    assert logged(without, "loss/train/total") == logged(with_it, "loss/train/total")
    assert watches[0].seen == watches[1].seen
    assert all(watches[1].seen[0][-1])  # the model trains
    for name, value in without.state.model.state_dict().items():
        assert torch.equal(value, with_it.state.model.state_dict()[name])
    (memory,) = with_it.logger.destinations
    assert [int(stamp.batch) for stamp, _ in memory.data[ACCURACY]] == [2, 4, 5]  # and at the end
    assert not any(name.startswith("downstream") for name in without.logger.destinations[0].data)


def test_it_logs_what_the_command_finds_in_the_saved_model(world: dict[str, str], tmp_path: Path) -> None:
    trainer = trained(evaluation(world, interval="1dur", limit=None))
    folder = save(trainer.state.model.model, tmp_path / "trained")
    found = downstream([folder], world["data"])["models"][folder]
    for task, result in found["results"].items():
        for metric, value in result["metrics"].items():
            assert logged(trainer, f"downstream/{task}/{metric}") == [pytest.approx(value, rel=1e-5)]
    assert logged(trainer, "downstream/average") == [pytest.approx(found["average"])]


def test_a_run_that_goes_on_does_not_evaluate_twice(world: dict[str, str], tmp_path: Path) -> None:
    settings = {"save_interval": "2ba", "run_name": "r", "autoresume": True, "folder": tmp_path}
    whole = trained(evaluation(world))
    with pytest.raises(Killed):
        trained(evaluation(world), KillAt(4), **settings)
    resumed = trained(evaluation(world), **settings)
    (memory,) = resumed.logger.destinations
    assert [int(stamp.batch) for stamp, _ in memory.data[ACCURACY]] == [5]  # 2 and 4 were before
    assert logged(resumed, ACCURACY) == logged(whole, ACCURACY)[-1:]


def test_the_masked_model_is_evaluated(world: dict[str, str]) -> None:
    """With masks of the target's size on it, a model answers otherwise than its weights alone."""
    pruning = TargetedPruning(TARGET, warmup="3ba")
    trainer = trained(evaluation(world, interval="1dur", limit=None), algorithms=[pruning])
    masked = logged(trainer, "downstream/completion_one/perplexity")[0]
    lm = next(c for c in trainer.state.callbacks if isinstance(c, DownstreamEvaluation))
    scales = pruning._pruning.model.leaves
    with torch.no_grad():
        assert any(bool((leaf == 0).any()) for leaf in scales.values())
        for leaf in scales.values():
            leaf.fill_(1.0)
    from llmshearing.downstream.evaluate import evaluate_task

    (task,) = [task for task in lm._tasks if task.name == "completion_one"]
    trainer.state.model.eval()
    assert evaluate_task(lm._lm, task, limit=None)["metrics"]["perplexity"] != pytest.approx(masked, rel=1e-3)


def test_what_cannot_work_is_refused_before_the_first_batch(world: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="callbacks.downstream_evaluation.interval is 'often'; it must be a time"):
        build("callbacks", "downstream_evaluation", {"suite": "quick", "interval": "often"})
    with pytest.raises(InputError, match="eval_batch_size is 0"):
        evaluation(world, eval_batch_size=0)
    with pytest.raises(InputError, match="Unknown suite 'quik'. Did you mean 'quick'"):
        DownstreamEvaluation("quik")
    trainer = make_trainer(callbacks=[evaluation(world)])
    with pytest.raises(InputError, match="need the model's tokenizer"):
        trainer.fit()
    suite = tmp_path / "suite.yaml"
    suite.write_text(f"tasks: [{{data: {tmp_path}/nowhere}}]")
    with pytest.raises(InputError, match="holds no prepared domain"):
        trained(DownstreamEvaluation(suite))


@pytest.mark.dist
@pytest.mark.parametrize("layout", ["ddp", "fsdp2"])
def test_ranks_share_out_the_questions(forked: ForkServer, world: dict[str, str], tmp_path: Path, layout: str) -> None:
    options = {"data": world["data"], "fsdp": layout == "fsdp2", "generation": str(write_generation(tmp_path))}
    command = ["composer", "-n", "2", "-m", "tests.downstream.distributed_run", str(tmp_path), json.dumps(options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = forked.run(command, cwd=REPOSITORY, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    alone = trained(evaluation(world, limit=9))
    assert ranks[0]["logged"] == ranks[1]["logged"]
    assert [rank["sharded"] for rank in ranks] == [layout == "fsdp2"] * 2
    assert ranks[0]["losses"] == ranks[0]["losses_without"]
    if layout == "fsdp2":
        assert "'next' generates text, for which ranks with sharded weights would wait" in ranks[0]["generated"]
    else:
        assert len(ranks[0]["generated"]) == 3
    for name, values in ranks[0]["logged"].items():
        assert len(values) == 3
        assert values == pytest.approx(logged(alone, name), rel=0.02), name
