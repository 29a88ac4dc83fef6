"""Dynamic batch loading in a real Composer trainer."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composer import Callback, State
from composer.loggers import InMemoryLogger, Logger

from llmshearing.data.callback import DynamicBatchLoading
from llmshearing.data.carry import apportion_carried
from llmshearing.data.forecast import ado_proportions, learning_preference, predicted_references
from llmshearing.data.proportions import effective_domains, update_proportions
from llmshearing.errors import InputError
from tests.data.conftest import Make
from tests.data.helpers import shared_memory_of
from tests.data.training import GLOBAL_BATCH, PROPORTIONS, REFERENCES, ROUND


def logged(logger: InMemoryLogger, key: str) -> dict[int, float]:
    """Values of a metric by batch."""
    return {int(timestamp.batch): float(value) for timestamp, value in logger.data[key]}


def test_updates_follow_algorithm_1_on_the_logged_losses(make: Make) -> None:
    log = InMemoryLogger()
    trainer, recorder = make(loggers=[log], duration="14ba", loader={"num_workers": 2})
    trainer.fit()
    proportions = list(PROPORTIONS.values())
    domains, owed = list(PROPORTIONS), (0, 0, 0)
    for number, batch in enumerate((4, 8, 12)):
        rows = [row for rows in recorder.batches[batch - ROUND : batch] for row in rows]
        counts = Counter(domain for domain, _ in rows)
        due, owed = apportion_carried(ROUND * GLOBAL_BATCH, proportions, owed)
        assert [counts[i] for i in range(3)] == due.tolist()
        losses = [logged(log, f"metrics/{domain}/LanguageCrossEntropy")[batch] for domain in domains]
        proportions = update_proportions(proportions, losses, [REFERENCES[d] for d in domains]).tolist()
        np.testing.assert_allclose(recorder.proportions[number], proportions, rtol=1e-12)
        for domain, loss, share in zip(domains, losses, proportions, strict=True):
            assert logged(log, f"data/proportion/{domain}")[batch] == pytest.approx(share, rel=1e-12)
            assert logged(log, f"data/loss/{domain}")[batch] == loss
            assert logged(log, f"data/reference_loss/{domain}")[batch] == REFERENCES[domain]
            assert logged(log, f"data/difference/{domain}")[batch] == max(loss - REFERENCES[domain], 0)
        assert logged(log, "data/effective_domains")[batch] == pytest.approx(effective_domains(proportions))
    used = Counter(domains[domain] for rows in recorder.batches[:12] for domain, _ in rows)
    for domain, samples in zip(domains, (300, 200, 100), strict=True):
        assert logged(log, f"data/samples/{domain}")[12] == used[domain]
        assert logged(log, f"data/passes/{domain}")[12] == pytest.approx(used[domain] / samples)
    assert recorder.proportions[3] == recorder.proportions[2]  # the last evaluation, within a round, changes nothing


def test_resumes_within_a_round_exactly(make: Make, tmp_path: Path) -> None:
    whole, expected = make(save_folder=str(tmp_path), save_interval="1ba")
    whole.fit()
    for stop in (3, 4, 6):
        checkpoint = str(tmp_path / f"ep0-ba{stop}-rank0.pt")
        trainer, recorder = make(load_path=checkpoint, loader={"num_workers": 2})
        trainer.fit()
        assert recorder.batches == expected.batches[stop:]
        assert recorder.proportions == expected.proportions[stop // ROUND :]
        for ours, theirs in zip(trainer.state.model.parameters(), whole.state.model.parameters(), strict=True):
            assert torch.equal(ours, theirs)


LOOKING_BACK = [
    {"update_type": "ado"},
    {"predict_references": True},
    {"reference_losses": REFERENCES, "predict_references": True},
]
LONG = "28ba"  # seven rounds: three before the laws, then some


@pytest.mark.parametrize("rule", LOOKING_BACK, ids=str)
def test_rules_that_look_back_follow_the_logged_losses(make: Make, rule: dict[str, Any]) -> None:
    log = InMemoryLogger()
    trainer, recorder = make(steer=rule, loggers=[log], duration=LONG)
    trainer.fit()
    domains, rounds = list(PROPORTIONS), range(ROUND, 25, ROUND)
    losses = [[logged(log, f"data/loss/{domain}")[batch] for domain in domains] for batch in rounds]
    samples = [batch * GLOBAL_BATCH for batch in rounds]
    prior = held = list(PROPORTIONS.values())
    preferences: list[list[float]] = []
    for number, batch in enumerate(rounds, start=1):
        seen = samples[:number], losses[:number]
        if rule.get("update_type") == "ado":
            preferences.append(learning_preference(prior, held, *seen).tolist())
            held = ado_proportions(prior, preferences, held, floor=0.01).tolist()
            assert [logged(log, f"data/preference/{d}")[batch] for d in domains] == preferences[-1]
        else:
            given = list(REFERENCES.values()) if "reference_losses" in rule else None
            references = predicted_references(*seen, 28 * GLOBAL_BATCH, given)
            held = update_proportions(held, losses[number - 1], references).tolist()
            assert [logged(log, f"data/reference_loss/{d}")[batch] for d in domains] == references.tolist()
        np.testing.assert_allclose(recorder.proportions[number - 1], held, rtol=1e-12)
        assert [logged(log, f"data/proportion/{d}")[batch] for d in domains] == pytest.approx(held)
    if "reference_losses" not in rule:
        assert recorder.proportions[2] == pytest.approx(prior, abs=1e-4)  # too early for laws
    assert np.abs(np.subtract(recorder.proportions[5], prior)).max() > 1e-3  # not any more


@pytest.mark.parametrize("rule", LOOKING_BACK[:2], ids=str)
def test_rules_that_look_back_resume_exactly(make: Make, tmp_path: Path, rule: dict[str, Any]) -> None:
    whole, expected = make(steer=rule, duration=LONG, save_folder=str(tmp_path), save_interval="1ba")
    whole.fit()
    for stop in (3, 16, 22):
        trainer, recorder = make(steer=rule, duration=LONG, load_path=str(tmp_path / f"ep0-ba{stop}-rank0.pt"))
        trainer.fit()
        assert recorder.batches == expected.batches[stop:]
        assert recorder.proportions == expected.proportions[stop // ROUND :]


@pytest.mark.parametrize("rule", LOOKING_BACK[:2], ids=str)
def test_rules_that_look_back_may_fit_on(make: Make, rule: dict[str, Any]) -> None:
    trainer, expected = make(steer={**rule}, duration="9ba")
    trainer.fit()
    for more in (1, 9, 9):
        trainer.fit(duration=f"{more}ba")
    again, recorder = make(steer={**rule}, duration="9ba")
    for duration in (None, "1ba", "9ba", "9ba"):
        again.fit(duration=duration)
    assert recorder.batches == expected.batches
    assert len(expected.proportions) >= 6


def test_another_run_with_the_same_callback_begins_anew(make: Make) -> None:
    steer = DynamicBatchLoading(update_type="ado")
    first, expected = make(steer=steer, duration=LONG)
    first.fit()
    first.close()  # as Composer wants it
    second, recorder = make(steer=steer, duration=LONG)
    second.fit()
    assert recorder.proportions == expected.proportions


def test_a_change_to_a_rule_that_looks_back_says_that_it_waits(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, before = make(save_folder=str(tmp_path), duration="10ba")
    trainer.fit()
    with caplog.at_level(logging.WARNING):
        trainer, recorder = make(
            steer={"update_type": "ado"}, load_path=str(tmp_path / "latest-rank0.pt"), duration="32ba"
        )
        trainer.fit()
    assert any("has no losses of earlier rounds; ado wants 4" in message for message in caplog.messages)
    reached = before.proportions[1]
    assert recorder.proportions[0] == pytest.approx(reached)
    assert recorder.proportions[2] == pytest.approx(reached)
    assert np.abs(np.subtract(recorder.proportions[5], reached)).max() > 1e-4


def test_checkpoints_tell_proportions_and_use_in_plain_types(make: Make, tmp_path: Path) -> None:
    trainer, recorder = make(save_folder=str(tmp_path), save_interval="6ba", duration="6ba")
    trainer.fit()
    state = torch.load(tmp_path / "ep0-ba6-rank0.pt", weights_only=False)["state"]["dataset_state"]["train"]
    assert json.loads(json.dumps(state)) == state
    assert state["domains"] == list(PROPORTIONS)
    assert state["proportions"] == recorder.proportions[0]
    used = Counter(domain for rows in recorder.batches for domain, _ in rows)
    assert state["samples_used"] == [used[i] for i in range(3)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("fits", [(5, 7), (4, 4, 4), (1, 2, 3, 6)], ids=str)
def test_fit_may_go_on_in_the_same_process(make: Make, fits: tuple[int, ...], workers: int) -> None:
    whole, expected = make()
    whole.fit()
    loader = {"num_workers": workers, "persistent_workers": workers > 0}
    trainer, recorder = make(duration=f"{fits[0]}ba", loader=loader)
    trainer.fit()
    for more in fits[1:]:
        trainer.fit(duration=f"{more}ba")
    assert recorder.batches == expected.batches
    assert trainer.state.timestamp.batch == 12


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_may_fit_on(make: Make, tmp_path: Path, workers: int) -> None:
    whole, expected = make(save_folder=str(tmp_path), save_interval="3ba")
    whole.fit()
    load = {"load_path": str(tmp_path / "ep0-ba3-rank0.pt"), "loader": {"num_workers": workers}}
    trainer, recorder = make(**load, duration="5ba")
    trainer.fit()
    for more in (1, 3, 3):
        trainer.fit(duration=f"{more}ba")
    assert recorder.batches == expected.batches[3:]


def test_a_constant_mix_may_fit_on(make: Make) -> None:
    constant = {"eval_interval": "0ba", "loader": {"num_workers": 2}}
    whole, expected = make(steer=DynamicBatchLoading(update_type="constant"), **constant)
    whole.fit()
    trainer, recorder = make(steer=DynamicBatchLoading(update_type="constant"), **constant, duration="1ba")
    trainer.fit()
    for more in (6, 1, 4):
        trainer.fit(duration=f"{more}ba")
    assert recorder.batches == expected.batches


def test_constant_mix_needs_neither_references_nor_evaluations(make: Make) -> None:
    log = InMemoryLogger()
    steer = DynamicBatchLoading(update_type="constant")
    trainer, recorder = make(steer=steer, eval_interval="0ba", loggers=[log], loader={"num_workers": 3})
    trainer.fit()
    counts = Counter(domain for rows in recorder.batches for domain, _ in rows)
    for index, share in enumerate(PROPORTIONS.values()):
        assert abs(counts[index] - 144 * share) < 1
    assert logged(log, "data/proportion/web") == dict.fromkeys((0, 4, 8, 12), 0.3)


def test_options_reach_the_update(make: Make) -> None:
    steer = DynamicBatchLoading(REFERENCES, eta=3.0, floor={"web": 0.25}, max_change=0.04, clip=False)
    trainer, recorder = make(steer=steer)
    trainer.fit()
    for before, after in zip([list(PROPORTIONS.values()), *recorder.proportions], recorder.proportions, strict=False):
        assert np.abs(np.subtract(after, before)).max() <= 0.04 + 1e-12
        assert after[1] >= 0.25 - 1e-12


def test_reference_losses_from_a_file(make: Make, tmp_path: Path) -> None:
    file = tmp_path / "reference.json"
    file.write_text(json.dumps({"unit": "nats per token", "model": "m", "losses": REFERENCES}))
    assert DynamicBatchLoading(str(file)).reference_losses == REFERENCES
    file.write_text("{}")
    with pytest.raises(InputError, match="has no 'losses' by domain"):
        DynamicBatchLoading(file)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs reference_losses"),
        ({"update_type": "doremy"}, "Did you mean 'doremi'"),
        ({"update_type": "ado", "eta": 2.0}, "^eta: 2.0 is of update_type 'doremi' and has no effect with 'ado'"),
        ({"update_type": "constant", "clip": False}, "^clip: False is of update_type 'doremi'"),
        ({"update_type": "ado", "predict_references": True}, "^predict_references: True is of update_type 'doremi'"),
        ({"predict_references": "yes"}, "^predict_references: 'yes' is neither true nor false"),
        ({"update_type": "ado", "max_change": 0.0}, "^max_change: 0.0 is not"),
        ({"reference_losses": REFERENCES, "smoothing": 1.5}, "^smoothing: 1.5 is not"),
        ({"reference_losses": REFERENCES, "max_change": 0.0}, "^max_change: 0.0 is not"),
        ({"reference_losses": REFERENCES, "eta": -1.0}, "^eta: -1.0 is not a finite number of at least 0"),
    ],
)
def test_settings_are_checked_when_they_are_given(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DynamicBatchLoading(**settings)


def test_closing_the_trainer_gives_shared_memory_back(make: Make, data: Path) -> None:
    trainer, _ = make(duration="4ba")
    trainer.fit()
    dataset = trainer.state.train_dataloader.dataset
    assert f"{dataset._shm_prefix_int:06}" in shared_memory_of(data)
    trainer.close()
    assert f"{dataset._shm_prefix_int:06}" not in shared_memory_of(data)
    assert len(dataset[0]["input_ids"]) == 8  # and the dataset can still be used


def test_other_training_data_is_refused(make: Make) -> None:
    trainer, _ = make()
    trainer.state.train_dataloader = [1, 2, 3]
    with pytest.raises(InputError, match="needs a DynamicStreamingDataset to steer, but the training data is"):
        trainer.fit()


def test_without_the_callback_the_second_round_is_an_error(make: Make) -> None:
    trainer, recorder = make(steer=False, loader={"num_workers": 3})
    with pytest.raises(InputError, match=r"Round 0 is over at sample 48.* Add DynamicBatchLoading"):
        trainer.fit()
    assert len(recorder.batches) == ROUND


def test_an_evaluation_that_does_not_come_is_an_error_at_the_rounds_end(make: Make) -> None:
    trainer, recorder = make()
    for evaluator in trainer.state.evaluators:
        evaluator.eval_interval = lambda state, event: False
    with pytest.raises(InputError, match="Round 0 is over at sample 48"):
        trainer.fit()
    assert len(recorder.batches) == ROUND


def test_an_evaluation_of_some_domains_is_an_error(make: Make) -> None:
    trainer, _ = make()
    trainer.state.evaluators[1].eval_interval = lambda state, event: False
    with pytest.raises(InputError, match=r"Domain 'web' was not evaluated .* evaluated were \['books', 'code'\]"):
        trainer.fit()


class Diverge(Callback):
    """Spoils the model, as a diverging run does."""

    def batch_end(self, state: State, logger: Logger) -> None:
        with torch.no_grad():
            next(state.model.parameters()).fill_(torch.nan)


def test_a_nan_loss_is_an_error_and_never_a_proportion(make: Make) -> None:
    trainer, _recorder = make()
    trainer.state.callbacks.append(Diverge())
    with pytest.raises(InputError, match="The evaluation loss of domain 'code' is nan"):
        trainer.fit()
    assert trainer.state.train_dataloader.dataset.rounds._newest.proportions == tuple(PROPORTIONS.values())


def test_training_stops_where_data_runs_out(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    stop = {"on_exhausted": "stop", "start": {"books": 70}}
    trainer, recorder = make(dataset=stop, duration="100ba", loader={"num_workers": 2})
    with caplog.at_level(logging.WARNING):
        trainer.fit()
    rows = [row for rows in recorder.batches for row in rows]
    assert len(rows) == len(set(rows))
    assert len(recorder.batches) % ROUND == 0
    assert int(trainer.state.timestamp.batch) == len(recorder.batches) < 50
    assert any("books' has 30 samples left and can run out from batch" in message for message in caplog.messages)
    assert any("Training stops: the next round would repeat samples of" in m for m in caplog.messages)


def test_checkpoints_of_other_data_are_refused(make: Make, tmp_path: Path, make_data: Callable[..., Path]) -> None:
    trainer, _ = make(save_folder=str(tmp_path), duration="3ba")
    trainer.fit()
    other = make_data(code=301, web=200, books=100)
    with pytest.raises(InputError, match="The shards of code are not those of the checkpoint"):
        make(load_path=str(tmp_path / "latest-rank0.pt"), dataset={"local": str(other)})
    with pytest.raises(InputError, match="was not a DynamicStreamingDataset"):
        make()[0].state.train_dataloader.dataset.load_state_dict({"epoch": 0, "sample_in_epoch": 12})
    with pytest.raises(InputError, match="was not a DynamicStreamingDataset"):
        make()[0].state.train_dataloader.dataset.load_state_dict(None)  # of a loader without a state


def test_llm_foundry_labels_are_understood(make: Make) -> None:
    whole, expected = make()
    whole.fit()
    trainer, recorder = make(label_prefix="eval/")
    trainer.fit()
    assert set(trainer.state.eval_metrics) == {"eval/code", "eval/web", "eval/books"}
    assert recorder.batches == expected.batches
    assert recorder.proportions == expected.proportions
