"""Units chosen by importance, at random, or by masks learned in a short search on weights that stand still."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmshearing import TargetedPruning
from llmshearing.convert.commands import shear
from llmshearing.errors import InputError
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
    scores = algorithm._importance.scores
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
        ({"selection": "random", "search": "3ba"}, "random units need no search"),
        ({"selection": "importance", "warmup": "3ba"}, "masks are not learned by selection 'importance'"),
        ({"search": "soon"}, "search is 'soon', which is not a time"),
        ({"search": "5ba", "warmup": "5ba"}, "search must be the longer one"),
        ({"search": "13ba"}, "longer than the run of 12ba"),
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
