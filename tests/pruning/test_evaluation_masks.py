"""Which masks are on the model when: between batches, in evaluation, after an interruption and at the end."""

from __future__ import annotations

import pytest
import torch
from composer.core import Callback, Event, State
from composer.loggers import Logger

from llmshearing import TargetedPruning
from llmshearing.pruning.fold import scale_vectors
from tests.models import make_model, token_ids
from tests.training import TARGET, make_trainer


def pruning(**settings) -> TargetedPruning:
    return TargetedPruning(TARGET, **{"warmup": "5ba", **settings})


def test_evaluation_uses_deterministic_masks_and_the_target_shape_at_the_end() -> None:
    trainer = make_trainer([pruning()])
    algorithm = trainer.state.algorithms[-1]
    trainer.fit(duration="11ba")
    first = trainer.state.model.eval().model(token_ids()).logits
    assert torch.equal(first, trainer.state.model.model(token_ids()).logits)
    trainer.fit(duration="1ba")
    trainer.state.model.eval().model(token_ids())
    leaves = algorithm._pruning.model.leaves
    assert int((leaves["hidden"] != 0).sum()) == TARGET["hidden_size"]
    assert int((leaves["intermediate.0"] != 0).sum()) == TARGET["intermediate_size"]


class Watch(Callback):
    """Whether callbacks find the masks of evaluation on the model, by event and batch."""

    def __init__(self, algorithm: TargetedPruning) -> None:
        self.algorithm = algorithm
        self.found: dict[tuple[str, int], bool] = {}

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        """Compare with the masks of evaluation."""
        if not hasattr(self.algorithm, "_pruning"):
            return
        finished = state.max_duration is not None and state.timestamp >= state.max_duration
        masks = self.algorithm._pruning.evaluation_masks(finished=finished)
        wanted = scale_vectors(masks, self.algorithm.source_shape)
        same = all(torch.equal(leaf, wanted[name]) for name, leaf in self.algorithm._pruning.model.leaves.items())
        self.found[event.value, int(state.timestamp.batch)] = same


@pytest.mark.parametrize("settings", [{}, {"warmup": None, "search": "4ba"}], ids=["learned", "searched"])
def test_sampled_masks_are_on_the_model_only_while_a_batch_trains(settings: dict) -> None:
    algorithm = pruning(**settings)
    watch = Watch(algorithm)
    trainer = make_trainer([algorithm], duration="6ba", callbacks=[watch])
    trainer.fit()
    between = ("after_load", "fit_start", "batch_start", "batch_end", "batch_checkpoint", "epoch_end", "fit_end")
    assert all(same for (event, _), same in watch.found.items() if event in between)
    assert {batch for event, batch in watch.found if event == "batch_end"} == set(range(1, 7))
    assert not all(watch.found["before_forward", batch] for batch in range(1, 4))  # those were drawn


def test_prediction_after_an_interrupted_batch_is_deterministic() -> None:
    class Interrupt(Callback):
        def after_train_batch(self, state: State, logger: Logger) -> None:
            if state.timestamp.batch == 3:
                raise KeyboardInterrupt

    algorithm = pruning()
    trainer = make_trainer([algorithm], callbacks=[Interrupt()])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    trainer.predict(trainer.state.train_dataloader, subset_num_batches=1)
    expected = scale_vectors(algorithm.masks.expected(), algorithm.source_shape)
    for name, leaf in algorithm._pruning.model.leaves.items():
        assert torch.equal(leaf, expected[name])


def test_evaluation_before_the_first_batch_is_of_the_source() -> None:
    trainer = make_trainer([pruning()])
    assert torch.equal(trainer.state.model.eval().model(token_ids()).logits, make_model("llama3")(token_ids()).logits)
