"""Units that a file of scores chooses, in a run of TargetedPruning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llmshearing import TargetedPruning
from llmshearing.convert.commands import shear
from llmshearing.errors import InputError
from llmshearing.pruning.functional import apply_targeted_pruning
from llmshearing.pruning.scores import Scores
from llmshearing.pruning.scoring import score
from tests.models import make_model, token_ids
from tests.training import TARGET, KillAt, Killed, logged, make_trainer

BATCHES = [token_ids(batch=4, seed=seed) for seed in range(3)]


def scores_file(folder: Path, *, seed: int = 0) -> str:
    path = folder / f"scores-{seed}.safetensors"
    score(make_model("llama3", seed=seed), BATCHES).save(path)
    return str(path)


def pruning(**settings: Any) -> TargetedPruning:
    return TargetedPruning(TARGET, selection="scores", **settings)


def test_the_best_units_are_chosen_from_the_first_batch_on(tmp_path: Path) -> None:
    path = scores_file(tmp_path)
    algorithm = pruning(scores=path)
    trainer = make_trainer([algorithm], folder=tmp_path / "run")
    _, wanted = Scores.load(path).masks(TARGET)
    assert wanted.keys() == algorithm.masks.final().keys()
    assert all(torch.equal(mask, wanted[name]) for name, mask in algorithm.masks.final().items())
    trainer.fit()
    assert all(torch.equal(mask, wanted[name]) for name, mask in algorithm.masks.final().items())
    losses = logged(trainer, "loss/train/total")
    assert losses[-1] < losses[0]


def test_no_training_gives_what_the_conversion_of_the_model_gives(tmp_path: Path) -> None:
    path, model = scores_file(tmp_path), make_model("llama3")
    model.save_pretrained(tmp_path / "model")
    shear(tmp_path / "model", tmp_path / "first", scores=path, target=TARGET)
    trainer = make_trainer([pruning(scores=path)], folder=tmp_path / "run")
    trainer.save_checkpoint(str(tmp_path / "start.pt"))
    shear(tmp_path / "start.pt", tmp_path / "second")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_scores_are_told_apart_where_the_first_token_is_one_of_padding(tmp_path: Path) -> None:
    """Whose row transformers keeps at zero; it may fill all of the mark."""
    models = [make_model("llama3", seed=seed, hidden_size=256, pad_token_id=0) for seed in (0, 1)]
    assert not models[0].get_input_embeddings().weight[0].any()
    score(models[0], BATCHES[:1]).save(tmp_path / "scores")
    for seed, model in enumerate(models):
        model.save_pretrained(tmp_path / f"model-{seed}")
    target = {"intermediate_size": 8}
    shear(tmp_path / "model-0", tmp_path / "out", scores=tmp_path / "scores", target=target)
    with pytest.raises(InputError, match="The scores are of another model"):
        shear(tmp_path / "model-1", tmp_path / "other", scores=tmp_path / "scores", target=target)


def test_a_killed_run_goes_on_to_the_same_numbers_but_not_with_other_scores(tmp_path: Path) -> None:
    path = scores_file(tmp_path)
    straight = make_trainer([pruning(scores=path)])
    straight.fit()
    settings = {"folder": tmp_path / "run", "save_interval": "3ba", "run_name": "r", "autoresume": True}
    interrupted = make_trainer([pruning(scores=path)], callbacks=[KillAt(5)], **settings)
    with pytest.raises(Killed):
        interrupted.fit()
    interrupted.close()
    resumed = make_trainer([pruning(scores=path)], **settings)
    resumed.fit()
    assert logged(resumed, "loss/train/total") == logged(straight, "loss/train/total")[3:]
    scores = Scores.load(path)
    turned = {name: -units for name, units in scores.units.items()}
    Scores(scores.source, turned, scores.mark).save(tmp_path / "others")
    with pytest.raises(InputError, match="units were chosen by other scores"):
        make_trainer([pruning(scores=str(tmp_path / "others"))], **settings)


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    path = scores_file(tmp_path)
    with pytest.raises(InputError, match="selection is 'scores' and scores is None"):
        pruning()
    with pytest.raises(InputError, match=f"selection is 'importance' and scores is '{path}'"):
        TargetedPruning(TARGET, selection="importance", scores=path)
    with pytest.raises(InputError, match="selection 'scores' needs none"):
        pruning(scores=path, search="3ba")
    with pytest.raises(InputError, match="There is no file"):
        make_trainer([pruning(scores=str(tmp_path / "nowhere"))])
    with pytest.raises(InputError, match="The scores are of another model"):
        make_trainer([pruning(scores=scores_file(tmp_path, seed=5))])
    model, units = make_model("llama3"), Scores.load(path).units
    with pytest.raises(InputError, match="scores are given for 'scores'"):
        apply_targeted_pruning(model, TARGET, scores=units)
    with pytest.raises(InputError, match=r"Scores of hidden_size must be of shape \(48,\); there are none"):
        apply_targeted_pruning(
            model, TARGET, selection="scores", scores={n: u for n, u in units.items() if n != "hidden_size"}
        )
