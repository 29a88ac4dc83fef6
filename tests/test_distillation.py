"""SourceDistillation: its loss, by itself and in real Trainers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from llmshearing import SourceDistillation, TargetedPruning
from llmshearing.distillation import distillation_loss
from llmshearing.errors import InputError
from tests.models import SIZES, make_model
from tests.pruning.test_distributed import run
from tests.training import TARGET, logged, make_trainer


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model other than the one that is trained, of the same vocabulary."""
    folder = tmp_path_factory.mktemp("teacher")
    make_model("qwen3-tied", seed=5).save_pretrained(folder)
    return str(folder)


def example(k: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(2, 2, 5, SIZES["vocab_size"], generator=generator) * 2
    labels = torch.randint(0, SIZES["vocab_size"], (2, 5), generator=generator)
    labels[0, 3:] = -100
    values, ids = (teacher / 1.5).log_softmax(-1).topk(k)
    return {"logits": logits, "teacher": values, "ids": ids, "labels": labels, "whole": teacher}


def test_loss_over_the_whole_vocabulary_is_the_divergence_of_predicted_tokens() -> None:
    case = example(SIZES["vocab_size"])
    whole = case.pop("whole")
    positions = [(0, 0), (0, 1), *((1, i) for i in range(4))]  # those whose next label counts
    student, target = (torch.stack([logits[i] for i in positions]) / 1.5 for logits in (case["logits"], whole))
    expected = functional.kl_div(
        student.log_softmax(-1), target.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    torch.testing.assert_close(distillation_loss(**case, temperature=1.5), 1.5**2 * expected)


def test_loss_over_the_likeliest_tokens_is_the_divergence_with_the_others_as_one() -> None:
    case = example(3)
    whole = case.pop("whole")
    student, target = (case["logits"][1, 2] / 1.5).softmax(-1), (whole[1, 2] / 1.5).softmax(-1)
    ids = target.topk(3).indices
    merged = [torch.cat([p[ids], (1 - p[ids].sum()).view(1)]) for p in (student, target)]
    one = {name: case[name][1:2, 2:4] for name in ("logits", "teacher", "ids", "labels")}
    expected = (merged[1] * (merged[1] / merged[0]).log()).sum()
    torch.testing.assert_close(distillation_loss(**one, temperature=1.5), 1.5**2 * expected)


def test_loss_is_zero_at_the_teacher_and_its_gradient_too() -> None:
    case = example(8)
    logits = case.pop("whole").clone().requires_grad_()
    loss = distillation_loss(**{**case, "logits": logits}, temperature=1.5)
    loss.backward()
    assert loss.abs() < 1e-5
    assert logits.grad.abs().max() < 1e-5


def test_training_comes_nearer_to_the_teacher(teacher: str) -> None:
    trainer = make_trainer([SourceDistillation(teacher, weight=1.0, dtype="float32")], duration="40ba")
    trainer.fit()
    divergence = logged(trainer, "distillation/divergence")
    assert len(divergence) == 40
    assert divergence[-1] < 0.7 * divergence[0]
    assert logged(trainer, "loss/train/total") == pytest.approx(divergence, rel=1e-5)  # all of the loss


def test_weight_mixes_the_two_losses(teacher: str) -> None:
    def first_loss(*algorithms: Any) -> float:
        trainer = make_trainer(algorithms, duration="1ba")
        trainer.fit()
        return logged(trainer, "loss/train/total")[0]

    alone = first_loss()
    whole = first_loss(SourceDistillation(teacher, weight=1.0))
    assert first_loss(SourceDistillation(teacher, weight=0.25)) == pytest.approx(0.75 * alone + 0.25 * whole, rel=1e-4)


def test_microbatches_change_nothing(teacher: str) -> None:
    losses = []
    for size in (None, 2):
        trainer = make_trainer([SourceDistillation(teacher)], device_train_microbatch_size=size)
        trainer.fit()
        losses.append(logged(trainer, "loss/train/total") + logged(trainer, "distillation/divergence"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_works_with_pruning_and_stays_out_of_the_checkpoint(teacher: str, tmp_path: Path) -> None:
    algorithms = [TargetedPruning(TARGET, search="4ba"), SourceDistillation(teacher, top_k=4)]
    trainer = make_trainer(algorithms, folder=tmp_path)
    trainer.fit()
    assert len(logged(trainer, "distillation/divergence")) == 12
    plain = make_trainer(folder=tmp_path / "plain")
    plain.fit()
    keys = [
        set(torch.load(folder / "latest-rank0.pt", weights_only=False)["state"]["model"])
        for folder in (tmp_path, tmp_path / "plain")
    ]
    assert keys[0] == keys[1]


@pytest.mark.dist
@pytest.mark.parametrize("fsdp", [None, {"state_dict_type": "sharded"}], ids=["ddp", "fsdp2"])
def test_two_ranks_train_as_one_does_and_fsdp_shards_the_teacher(
    teacher: str, tmp_path: Path, fsdp: dict[str, Any] | None
) -> None:
    (one,) = run(tmp_path / "one", 1, teacher=teacher)
    ranks = run(tmp_path / "two", 2, teacher=teacher, **({"fsdp": fsdp} if fsdp else {}))
    assert [rank["teacher_sharded"] for rank in ranks] == [fsdp is not None] * 2
    assert ranks[0]["losses"][:6] == pytest.approx(one["losses"][:6], rel=1e-3)
    both = [sum(pair) / 2 for pair in zip(*(rank["divergence"] for rank in ranks), strict=True)]
    assert both[:6] == pytest.approx(one["divergence"][:6], rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": 0.0}, "weight is 0.0"),
        ({"weight": 1.5}, "weight is 1.5"),
        ({"temperature": 0}, "must be above 0"),
        ({"top_k": 0}, "at least one token"),
        ({"dtype": "int8"}, "'bfloat16' or 'float32'"),
    ],
)
def test_wrong_settings_are_refused(teacher: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SourceDistillation(teacher, **settings)


def test_a_teacher_that_is_not_there_or_has_another_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere' cannot be loaded"):
        make_trainer([SourceDistillation(str(tmp_path / "nowhere"))])
    make_model("llama2", vocab_size=64).save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="has 64 tokens, the model 96"):
        make_trainer([SourceDistillation(str(tmp_path / "other"))])
