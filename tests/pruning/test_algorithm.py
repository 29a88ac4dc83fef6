"""TargetedPruning in a real Trainer: what it does there, and what it must leave alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from composer import Trainer
from composer.core import Event, Precision
from composer.models import ComposerClassifier, HuggingFaceModel
from transformers import AutoConfig, AutoModelForCausalLM

from llmshearing import ModelShape, TargetedPruning
from llmshearing.convert.commands import shear
from llmshearing.errors import InputError
from tests.models import token_ids
from tests.training import TARGET, KillAt, Killed, dataset, logged, make_trainer


def pruning(**settings) -> TargetedPruning:
    return TargetedPruning(TARGET, **{"warmup": "5ba", **settings})


def latest(folder: Path) -> Path:
    return folder / "latest-rank0.pt"


@pytest.mark.parametrize("family", ["llama2", "llama3", "mistral", "qwen2", "qwen3-tied"])
def test_model_in_memory_after_fit_equals_the_sheared_folder(tmp_path: Path, family: str) -> None:
    trainer = make_trainer([pruning()], family=family, folder=tmp_path / "run")
    trainer.fit()
    ids = token_ids()
    with torch.no_grad():
        in_memory = trainer.state.model.model.eval()(ids).logits
    shear(latest(tmp_path / "run"), tmp_path / "sheared")
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "sheared").eval()
    with torch.no_grad():
        sheared = small(ids).logits
    shape = ModelShape.from_hf_config(small.config)
    assert {name: getattr(shape, name) for name in TARGET} == TARGET
    assert shape.num_parameters() == small.num_parameters()
    assert (in_memory - sheared).abs().max() < 1e-5 * sheared.abs().max()
    assert trainer.state.algorithms[-1].masks.final()["hidden_size"].unique().numel() > 3  # soft, not 0 and 1


def test_user_optimizer_schedule_and_checkpoint_keys_are_those_of_a_run_without_it(tmp_path: Path) -> None:
    without = make_trainer(folder=tmp_path / "without")
    optimizer = without.state.optimizers[0]
    groups = [len(group["params"]) for group in optimizer.param_groups]
    without.fit()
    with_it = make_trainer([pruning()], folder=tmp_path / "with")
    assert [len(group["params"]) for group in with_it.state.optimizers[0].param_groups] == groups
    with_it.fit()
    assert with_it.state.optimizers[0].param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    states = [torch.load(latest(tmp_path / name), weights_only=False)["state"] for name in ("without", "with")]
    assert list(states[0]["model"]) == list(states[1]["model"])
    assert (
        states[0]["optimizers"]["DecoupledAdamW"]["state"].keys()
        == states[1]["optimizers"]["DecoupledAdamW"]["state"].keys()
    )


@pytest.mark.parametrize("stop", [3, 8])  # within the warm-up and after it
def test_resumed_run_equals_the_uninterrupted_one_to_the_bit(tmp_path: Path, stop: int) -> None:
    straight = make_trainer([pruning()])
    straight.fit()
    settings = {"folder": tmp_path, "save_interval": f"{stop}ba", "run_name": "r", "autoresume": True}
    interrupted = make_trainer([pruning()], callbacks=[KillAt(stop)], **settings)
    with pytest.raises(Killed):
        interrupted.fit()
    interrupted.close()
    resumed = make_trainer([pruning()], **settings)
    assert resumed.state.timestamp.batch == stop
    resumed.fit()
    masks, expected = resumed.state.algorithms[-1].masks, straight.state.algorithms[-1].masks
    for name, log_alpha in expected.log_alpha.items():
        assert torch.equal(masks.log_alpha[name], log_alpha)
        assert torch.equal(masks.multipliers[name].lam, expected.multipliers[name].lam)
        assert torch.equal(masks.multipliers[name].phi, expected.multipliers[name].phi)
    assert logged(resumed, "loss/train/total") == logged(straight, "loss/train/total")[stop:]


def test_microbatches_give_the_same_masks(tmp_path: Path) -> None:
    whole, parts = make_trainer([pruning()]), make_trainer([pruning()], device_train_microbatch_size=2)
    whole.fit()
    parts.fit()
    for name, log_alpha in whole.state.algorithms[-1].masks.log_alpha.items():
        torch.testing.assert_close(parts.state.algorithms[-1].masks.log_alpha[name], log_alpha, rtol=1e-3, atol=1e-3)


def test_everything_about_the_constraint_is_logged_at_every_batch() -> None:
    trainer = make_trainer([pruning()])
    trainer.fit()
    for dimension in TARGET:
        for value in ("expected", "target", "undecided", "lambda", "phi"):
            assert len(logged(trainer, f"pruning/{dimension}/{value}")) == 12
    assert logged(trainer, "pruning/hidden_size/target")[-1] == 24
    assert logged(trainer, "pruning/num_attention_heads/target")[-1] == 2
    assert logged(trainer, "pruning/hidden_size/expected")[-1] < 48
    assert len(logged(trainer, "pruning/lagrangian")) == len(logged(trainer, "pruning/distance")) == 12


def test_changed_settings_take_effect_where_a_checkpoint_goes_on_and_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer([pruning()], folder=tmp_path, duration="6ba").fit()
    changed = pruning(betas=(0.5, 0.9), lr=0.5, seed=18, warmup="7ba")
    trainer = make_trainer([changed], load_path=str(latest(tmp_path)))
    for said in (
        "betas was [0.9, 0.95] in the checkpoint; from here on it is [0.5, 0.9].",
        "lr was 1.0 in the checkpoint; from here on it is 0.5.",
        "seed was 17 in the checkpoint; from here on it is 18.",
        "warmup was '5ba' in the checkpoint; from here on it is '7ba'.",
    ):
        assert said in caplog.text
    assert "search was" not in caplog.text
    trainer.fit()
    assert {group["betas"] for group in changed.masks.optimizer.param_groups} == {(0.5, 0.9)}
    assert {group["lr"] for group in changed.masks.optimizer.param_groups} == {0.5}
    assert logged(trainer, "pruning/hidden_size/target")[0] == pytest.approx(48 - 24 * 6 / 7)


def test_mask_learning_rate_can_follow_the_schedule() -> None:
    trainer = make_trainer([pruning(lr_schedule="follow")])
    trainer.fit()
    last = trainer.state.algorithms[-1].masks.optimizer.param_groups[0]["lr"]
    assert 0.1 <= last < 0.2  # near the end of a cosine from 1 to 0.1


def test_warmup_can_be_a_share_of_the_run() -> None:
    trainer = make_trainer([pruning(warmup="0.5dur")])
    trainer.fit()
    assert logged(trainer, "pruning/hidden_size/target")[:8] == [48 - 4 * min(batch, 6) for batch in range(8)]


def test_source_that_already_has_the_target_shape_is_refused() -> None:
    with pytest.raises(InputError, match="there is nothing to prune"):
        make_trainer([TargetedPruning({"hidden_size": 48})])


def test_models_that_are_not_hugging_face_are_refused() -> None:
    model = ComposerClassifier(torch.nn.Linear(2, 2), num_classes=2)
    with pytest.raises(
        InputError, match="needs a composer.models.HuggingFaceModel or ComposerLlama, got ComposerClassifier"
    ):
        Trainer(model=model, algorithms=[pruning()], device="cpu", progress_bar=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"compat": "papr"}, "Did you mean 'paper'"),
        ({"lr_schedule": "folow"}, "Did you mean 'follow'"),
        ({"lr": 0.0}, "must be a number above 0"),
        ({"warmup": "soon"}, "not a time such as"),
        ({"warmup": "1ep"}, "give it in batches"),
        ({"warmup": "100tok"}, "give it in batches"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pruning(**settings)


@pytest.mark.parametrize("settings", [{"warmup": "12ba"}, {"warmup": "1dur"}, {"warmup": None}])
def test_warm_up_that_takes_the_whole_run_is_refused_before_the_first_batch(settings: dict) -> None:
    with pytest.raises(InputError, match=r"warmup is '\w+', but the run has only 12 batches: shorten it"):
        make_trainer([pruning(**settings)]).fit()


def test_sizes_that_learned_masks_cannot_reach_are_refused_where_the_model_is_known() -> None:
    with pytest.raises(InputError, match="target.hidden_size is 2, but learned masks reach 3 to 47"):
        make_trainer([TargetedPruning({"hidden_size": 2})])
    make_trainer([TargetedPruning({"hidden_size": 2}, selection="importance")])


def test_checkpoint_of_another_target_is_refused(tmp_path: Path) -> None:
    make_trainer([pruning(warmup="1ba")], folder=tmp_path, duration="2ba").fit()
    other = TargetedPruning({**TARGET, "hidden_size": 32}, warmup="1ba")
    with pytest.raises(InputError, match="The checkpoint's target shape"):
        make_trainer([other], load_path=str(latest(tmp_path)))


def test_loss_that_is_not_a_number_stops_the_run_and_says_which_mask() -> None:
    trainer = make_trainer([pruning()])
    with torch.no_grad():
        trainer.state.model.model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(RuntimeError, match="Pruning diverged at batch 0: .*hidden_size/expected"):
        trainer.fit()


def test_constraint_that_does_not_take_hold_stops_the_run_and_says_which_dimension() -> None:
    trainer = make_trainer([pruning(lr=1e-6)], duration="300ba", family="llama2")
    with pytest.raises(RuntimeError, match=r"Pruning diverged at batch 210: num_hidden_layers is 4.0 and as far from"):
        trainer.fit()


def test_unsupported_architecture_is_refused_by_name() -> None:
    model = HuggingFaceModel(
        AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", n_layer=1, n_embd=8, n_head=2))
    )
    with pytest.raises(ValueError, match="'gpt2' are not supported. Supported: gemma2, .*llama"):
        Trainer(model=model, algorithms=[pruning()], device="cpu", progress_bar=False)


def test_loss_scaling_is_refused() -> None:
    algorithm = pruning()
    state = SimpleNamespace(model=make_trainer().state.model, precision=Precision.AMP_FP16)
    with pytest.raises(InputError, match="does not support precision amp_fp16"):
        algorithm.apply(Event.INIT, state, None)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_changes_nothing(use_reentrant: bool) -> None:
    plain, checkpointed = make_trainer([pruning()]), make_trainer([pruning()])
    checkpointed.state.model.model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    plain.fit()
    checkpointed.fit()
    assert checkpointed.state.model.model.is_gradient_checkpointing
    for name, log_alpha in plain.state.algorithms[-1].masks.log_alpha.items():
        torch.testing.assert_close(
            checkpointed.state.algorithms[-1].masks.log_alpha[name], log_alpha, rtol=1e-3, atol=1e-3
        )


@pytest.mark.slow
def test_compiled_model_learns_the_same_masks() -> None:
    plain = make_trainer([pruning()], duration="6ba")
    compiled = make_trainer([pruning()], duration="6ba", compile_config={})
    plain.fit()
    compiled.fit()
    for name, log_alpha in plain.state.algorithms[-1].masks.log_alpha.items():
        torch.testing.assert_close(compiled.state.algorithms[-1].masks.log_alpha[name], log_alpha, rtol=1e-2, atol=1e-2)


def test_clipping_sees_the_model_gradients_only() -> None:
    trainer = make_trainer([pruning()])
    norms = []

    def record(optimizer, *_) -> None:
        grads = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
        norms.append(torch.nn.utils.get_total_norm([grad for grad in grads if grad is not None]).item())

    trainer.state.optimizers[0].register_step_post_hook(record)
    trainer.fit()
    assert norms == pytest.approx([0.5] * 12, rel=1e-3)  # every step was clipped, and to the user's norm


def test_repr_evaluates_to_the_same_algorithm() -> None:
    algorithm = pruning(lr=0.5, compat="upstream")
    assert repr(eval(repr(algorithm))) == repr(algorithm)


def test_data_of_these_tests_can_be_learned() -> None:
    trainer = make_trainer(duration="30ba")
    trainer.fit()
    losses = logged(trainer, "loss/train/total")
    assert losses[-1] < losses[0] - 0.5
    assert len(dataset()) == 256
