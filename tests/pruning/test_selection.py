"""Units chosen by importance, at random, or by masks learned in a short search on weights that stand still."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from composer.core import Callback, State
from composer.loggers import Logger
from transformers import AutoModelForCausalLM

from llmshearing import TargetedPruning
from llmshearing.convert.commands import shear
from llmshearing.errors import InputError
from llmshearing.pruning.chooser import log_ties
from llmshearing.pruning.target import UnitGroup
from tests.models import make_model, token_ids
from tests.training import TARGET, KillAt, Killed, dataset, logged, make_trainer

WAYS: dict[str, dict[str, Any]] = {
    "searched": {"search": "5ba"},
    "important": {"selection": "importance", "search": "5ba"},
    "random": {"selection": "random"},
}


def pruning(**settings: Any) -> TargetedPruning:
    return TargetedPruning(TARGET, **settings)


def kept(algorithm: TargetedPruning) -> dict[str, torch.Tensor]:
    return {name: mask != 0 for name, mask in algorithm.masks.final().items()}


@pytest.mark.parametrize("way", WAYS)
def test_chosen_units_have_masks_of_one_and_the_others_none(tmp_path: Path, way: str) -> None:
    algorithm = pruning(**WAYS[way])
    trainer = make_trainer([algorithm], folder=tmp_path / "run")
    trainer.fit()
    for name, mask in algorithm.masks.final().items():
        assert set(mask.unique().tolist()) == {0.0, 1.0}
        assert (mask.sum(-1) == algorithm.masks.groups[name].num_kept).all()
    ids = token_ids()
    shear(tmp_path / "run" / "latest-rank0.pt", tmp_path / "sheared")
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "sheared").eval()
    with torch.no_grad():
        in_memory, sheared = trainer.state.model.model.eval()(ids).logits, small(ids).logits
    assert (in_memory - sheared).abs().max() < 1e-5 * sheared.abs().max()
    assert logged(trainer, "pruning/num_hidden_layers/undecided")[-1] == 0


@pytest.mark.parametrize("way", ["searched", "important"])
def test_weights_stand_still_during_the_search_and_move_afterwards(way: str) -> None:
    trainer = make_trainer([pruning(**WAYS[way])])
    before = {name: tensor.clone() for name, tensor in trainer.state.model.state_dict().items()}
    trainer.fit(duration="5ba")
    for name, tensor in trainer.state.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not trainer.state.optimizers[0].state
    trainer.fit(duration="1ba")
    assert not torch.equal(trainer.state.model.state_dict()["model.lm_head.weight"], before["model.lm_head.weight"])


@pytest.mark.parametrize("way", ["searched", "important"])
def test_a_search_computes_no_gradients_of_weights_and_training_does(way: str) -> None:
    found: dict[int, set[bool]] = {}

    class Look(Callback):
        def after_backward(self, state: State, logger: Logger) -> None:
            found[int(state.timestamp.batch)] = {p.grad is not None for p in state.model.parameters()}

    trainer = make_trainer([pruning(**WAYS[way])], callbacks=[Look()])
    frozen = trainer.state.model.model.model.layers[1].mlp.up_proj.weight
    frozen.requires_grad_(False)  # by the user, who keeps it so
    trainer.fit()
    assert all(found[batch] == {False} for batch in range(5))
    assert all(found[batch] == {True, False} for batch in range(5, 12))
    assert [id(p) for p in trainer.state.model.parameters() if not p.requires_grad] == [id(frozen)]


def test_a_search_goes_through_layers_that_are_recomputed() -> None:
    """As ``transformers`` recomputes them by default, where nothing in front of the layers has masks."""
    found = []
    for recomputed in (False, True):
        algorithm = TargetedPruning({"intermediate_size": 24}, selection="importance", search="2ba")
        trainer = make_trainer([algorithm], duration="3ba")
        if recomputed:
            trainer.state.model.model.gradient_checkpointing_enable()
        trainer.fit()
        assert all(parameter.requires_grad for parameter in trainer.state.model.parameters())
        found.append(algorithm.masks.scores()["intermediate_size"])
    assert torch.allclose(*found)


def test_importance_is_the_squared_gradient_of_every_units_mask() -> None:
    algorithm = pruning(selection="importance", search="2ba")
    make_trainer([algorithm], duration="2ba").fit()
    batches = [torch.stack([row["input_ids"] for row in dataset()[start : start + 8]]) for start in (0, 8)]
    expected_layers, expected_neurons = torch.zeros(4), torch.zeros(4, 80)
    for ids in batches:
        model = make_model("llama3").train()
        neurons, layers = torch.ones(4, 80, requires_grad=True), torch.ones(4, requires_grad=True)
        for index, layer in enumerate(model.model.layers):
            scale_outputs(layer.self_attn, layers[index])
            scale_outputs(layer.mlp, layers[index])
            scale_inputs(layer.mlp.down_proj, neurons[index])
        model(input_ids=ids, labels=ids).loss.backward()
        expected_layers += layers.grad**2
        expected_neurons += neurons.grad**2
    scores = algorithm.masks.scores()
    torch.testing.assert_close(scores["num_hidden_layers"], expected_layers, rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(scores["intermediate_size"], expected_neurons, rtol=1e-3, atol=1e-9)
    best = expected_neurons.topk(TARGET["intermediate_size"]).indices.sort(-1).values
    assert torch.equal(kept(algorithm)["intermediate_size"].nonzero()[:, 1].view(4, -1), best)


def scale_outputs(module: torch.nn.Module, factor: torch.Tensor) -> None:
    def scale(_: Any, __: Any, output: Any) -> Any:
        return (output[0] * factor, *output[1:]) if isinstance(output, tuple) else output * factor

    module.register_forward_hook(scale)


def scale_inputs(module: torch.nn.Module, factor: torch.Tensor) -> None:
    module.register_forward_pre_hook(lambda _, inputs: (inputs[0] * factor,))


def test_random_units_are_the_seeds() -> None:
    first, again, other = (pruning(selection="random", seed=seed) for seed in (1, 1, 2))
    for algorithm in (first, again, other):
        make_trainer([algorithm])
    for name, units in kept(first).items():
        assert torch.equal(units, kept(again)[name])
    assert not torch.equal(kept(first)["hidden_size"], kept(other)["hidden_size"])


@pytest.mark.parametrize(("way", "interval"), [("searched", 3), ("searched", 5), ("important", 1)])
def test_saving_during_the_search_or_at_its_end_changes_nothing(tmp_path: Path, way: str, interval: int) -> None:
    unsaved = make_trainer([pruning(**WAYS[way])])
    unsaved.fit()
    settings = {"folder": tmp_path, "save_interval": f"{interval}ba", "run_name": "r", "autoresume": True}
    saving = make_trainer([pruning(**WAYS[way])], callbacks=[KillAt(7)], **settings)
    with pytest.raises(Killed):
        saving.fit()
    saving.close()
    losses = logged(unsaved, "loss/train/total")
    assert logged(saving, "loss/train/total") == losses[:7]
    for stop in sorted({3, 5} & set(range(0, 8, interval))):
        resumed = make_trainer([pruning(**WAYS[way])], load_path=str(tmp_path / f"ep0-ba{stop}-rank0.pt"))
        resumed.fit()
        assert logged(resumed, "loss/train/total") == losses[stop:]


@pytest.mark.parametrize(("way", "stop"), [("searched", 3), ("searched", 8), ("important", 3), ("random", 3)])
def test_resumed_run_equals_the_uninterrupted_one_to_the_bit(tmp_path: Path, way: str, stop: int) -> None:
    straight = make_trainer([pruning(**WAYS[way])])
    straight.fit()
    settings = {"folder": tmp_path, "save_interval": f"{stop}ba", "run_name": "r", "autoresume": True}
    interrupted = make_trainer([pruning(**WAYS[way])], callbacks=[KillAt(stop)], **settings)
    with pytest.raises(Killed):
        interrupted.fit()
    interrupted.close()
    resumed = make_trainer([pruning(**WAYS[way])], **settings)
    resumed.fit()
    assert logged(resumed, "loss/train/total") == logged(straight, "loss/train/total")[stop:]
    for name, units in kept(straight.state.algorithms[-1]).items():
        assert torch.equal(kept(resumed.state.algorithms[-1])[name], units)


@pytest.mark.parametrize("way", ["searched", "important"])
def test_checkpoint_from_before_units_were_chosen_is_not_sheared(tmp_path: Path, way: str) -> None:
    make_trainer([pruning(**WAYS[way])], folder=tmp_path / "run", save_interval="4ba", duration="6ba").fit()
    early = tmp_path / "run" / "ep0-ba4-rank0.pt"
    with pytest.raises(InputError, match=r"from before its units were chosen \(search: 5ba\). Go on training"):
        shear(early, tmp_path / "sheared")
    saved = torch.load(early, weights_only=False)
    (state,) = (state for name, state in saved["state"]["algorithms"] if name == "TargetedPruning")
    del state["settings"], state["chosen_after"]  # as older versions wrote it
    torch.save(saved, tmp_path / "old.pt")
    if way == "important":
        with pytest.raises(InputError, match=r"from before its units were chosen. Go on training"):
            shear(tmp_path / "old.pt", tmp_path / "sheared")
    shear(tmp_path / "run" / "latest-rank0.pt", tmp_path / "sheared")


@pytest.mark.parametrize("duration", ["1ep", "64sp", "1024tok"])  # 8 batches, an epoch 32
@pytest.mark.parametrize("settings", [{"selection": "importance", "search": "3ba"}, {"search": "3ba"}])
def test_search_in_batches_works_in_a_run_of_any_unit(settings: dict[str, Any], duration: str) -> None:
    trainer = make_trainer([pruning(**settings)], duration=duration, schedulers=None)
    trainer.fit()
    assert trainer.state.timestamp.batch == (32 if duration == "1ep" else 8)
    assert logged(trainer, "pruning/num_hidden_layers/undecided")[3:] == [0] * (int(trainer.state.timestamp.batch) - 3)


def test_shares_of_a_run_in_epochs_are_known_and_in_tokens_refused() -> None:
    trainer = make_trainer([pruning(search="0.25dur")], duration="1ep", schedulers=None)
    trainer.fit()
    assert trainer.state.algorithms[-1]._chosen_after == 8
    with pytest.raises(InputError, match="search is '0.25dur', a share of the run, but max_duration is '1024tok'"):
        make_trainer([pruning(search="0.25dur")], duration="1024tok", schedulers=None).fit()


def test_run_that_ends_before_its_search_says_so(tmp_path: Path) -> None:
    trainer = make_trainer([pruning(selection="importance", search="9ba")], duration="64sp", schedulers=None)
    with pytest.raises(InputError, match="run of 64sp ended after 8 batches, before units were chosen"):
        trainer.fit()


@pytest.mark.parametrize(
    ("way", "stop", "changes", "message"),
    [
        (
            "searched",
            8,
            {"search": "9ba"},
            "search is '9ba', but the checkpoint's units are chosen already, with '5ba'",
        ),
        ("random", 3, {"seed": 18}, "seed is 18, but the checkpoint's units are chosen already, with 17"),
        ("important", 4, {"search": "4ba"}, "search is '4ba', but the checkpoint at batch 4 had not ended its own"),
    ],
)
def test_settings_that_had_their_effect_cannot_change(
    tmp_path: Path, way: str, stop: int, changes: dict[str, Any], message: str
) -> None:
    make_trainer([pruning(**WAYS[way])], folder=tmp_path, save_interval=f"{stop}ba", duration="8ba").fit()
    with pytest.raises(InputError, match=message):
        make_trainer(
            [pruning(**{**WAYS[way], **changes})], load_path=str(tmp_path / f"ep0-ba{stop}-rank0.pt"), duration="12ba"
        ).fit()


def test_units_of_equal_score_at_the_cut_are_named(caplog: pytest.LogCaptureFixture) -> None:
    group = UnitGroup("intermediate_size", (3, 4), 2)
    log_ties(group, torch.tensor([[4.0, 3.0, 2.0, 1.0], [3.0, 3.0, 1.0, 1.0], [2.0, 1.0, 1.0, 1.0]]))
    (record,) = caplog.records
    assert record.getMessage() == (
        "intermediate_size: in 1 of 3 groups (layers 2) the last unit kept is no better than the first one dropped. "
        "3 units share their score there; of these, those of lower index stay."
    )


def test_importance_that_cannot_tell_units_apart_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    trainer = make_trainer([pruning(selection="importance", search="2ba")], duration="3ba")
    with torch.no_grad():
        trainer.state.model.model.model.layers[1].mlp.down_proj.weight.zero_()
    trainer.fit()
    assert "intermediate_size: in 1 of 4 groups (layers 1)" in caplog.text


def test_search_over_the_whole_run_leaves_the_sources_weights_to_shear(tmp_path: Path) -> None:
    algorithm = pruning(search="1dur")
    trainer = make_trainer([algorithm], folder=tmp_path / "run", duration="5ba")
    embedding = trainer.state.model.state_dict()["model.model.embed_tokens.weight"].clone()
    trainer.fit()
    shear(tmp_path / "run" / "latest-rank0.pt", tmp_path / "sheared")
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "sheared")
    assert torch.equal(small.model.embed_tokens.weight, embedding[:, kept(algorithm)["hidden_size"]])


def test_warm_up_is_a_share_of_the_search() -> None:
    trainer = make_trainer([pruning(search="10ba")])
    trainer.fit()
    assert logged(trainer, "pruning/hidden_size/target")[:6] == [48, 42, 36, 30, 24, 24]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"selection": "importnace"}, "Did you mean 'importance'"),
        ({"selection": "random", "search": "3ba"}, "selection .random. needs none"),
        ({"selection": "importance", "warmup": "3ba"}, "masks are not learned by selection 'importance'"),
        ({"search": "soon"}, "search is 'soon', which is not a time"),
        ({"search": "5ba", "warmup": "5ba"}, "search must be the longer one"),
        ({"search": "13ba"}, "longer than the run of 12ba"),
        ({"search": "0.01dur"}, "less than a batch of a run of 12ba"),
    ],
)
def test_wrong_settings_are_refused_before_the_first_batch(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_trainer([pruning(**settings)]).fit()


def test_checkpoint_of_another_selection_is_refused(tmp_path: Path) -> None:
    make_trainer([pruning(selection="random")], folder=tmp_path, duration="2ba").fit()
    with pytest.raises(InputError, match="made with selection=random, this run has learned"):
        make_trainer([pruning()], load_path=str(tmp_path / "latest-rank0.pt"))


def test_loss_that_is_not_a_number_does_not_choose_units() -> None:
    trainer = make_trainer([pruning(selection="importance")])
    with torch.no_grad():
        trainer.state.model.model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(RuntimeError, match="Pruning diverged at batch 0: importance became NaN"):
        trainer.fit()
