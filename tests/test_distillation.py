"""SourceDistillation: its loss, by itself and in real Trainers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Trainer
from composer.core import Event
from composer.loggers import InMemoryLogger
from composer.models import HuggingFaceModel
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from llmshearing import SourceDistillation, TargetedPruning
from llmshearing.errors import InputError
from tests.forkserver import ForkServer
from tests.models import SIZES, make_model, token_ids
from tests.pruning.test_distributed import run
from tests.test_teacher import words
from tests.training import TARGET, logged, make_trainer


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model other than the one that is trained, of the same vocabulary."""
    folder = tmp_path_factory.mktemp("teacher")
    make_model("qwen3-tied", seed=5).save_pretrained(folder)
    return str(folder)


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
    for size in (None, 2, 3):  # of 8 sequences: the last microbatch of 3 has 2
        trainer = make_trainer([SourceDistillation(teacher)], device_train_microbatch_size=size)
        trainer.fit()
        losses.append(logged(trainer, "loss/train/total") + logged(trainer, "distillation/divergence"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0] == pytest.approx(losses[2], rel=1e-3)


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
    forked: ForkServer, teacher: str, tmp_path: Path, fsdp: dict[str, Any] | None
) -> None:
    (one,) = run(forked, tmp_path / "one", 1, teacher=teacher)
    ranks = run(forked, tmp_path / "two", 2, teacher=teacher, **({"fsdp": fsdp} if fsdp else {}))
    assert [rank["teacher_sharded"] for rank in ranks] == [fsdp is not None] * 2
    assert ranks[0]["losses"][:6] == pytest.approx(one["losses"][:6], rel=1e-3)
    assert ranks[0]["divergence"] == ranks[1]["divergence"]  # of the whole batch, not of a rank's part
    assert ranks[0]["divergence"][:6] == pytest.approx(one["divergence"][:6], rel=1e-3)


def test_a_teacher_that_is_not_there_or_has_another_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere' cannot be loaded"):
        make_trainer([SourceDistillation(str(tmp_path / "nowhere"))])
    make_model("llama2", vocab_size=64).save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="has 64 tokens, the model 96"):
        make_trainer([SourceDistillation(str(tmp_path / "other"))])


def damaged(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> str:
    """A teacher whose file of tensors was changed."""
    make_model("qwen3-tied", seed=5).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def test_a_teacher_without_a_tensor_cut_short_or_not_finite_is_refused(tmp_path: Path) -> None:
    query = "model.layers.0.self_attn.q_proj.weight"
    lacking = damaged(tmp_path / "lacking", lambda tensors: tensors.pop(query))
    with pytest.raises(InputError, match=f"lacking' lacks {query}: it is incomplete"):
        make_trainer([SourceDistillation(lacking)])
    broken = damaged(tmp_path / "broken", lambda tensors: tensors[query][0, 0].fill_(torch.nan))
    with pytest.raises(InputError, match=f"broken' holds NaN or infinity in {query}"):
        make_trainer([SourceDistillation(broken)])
    whole = (tmp_path / "broken" / "model.safetensors").read_bytes()
    (tmp_path / "broken" / "model.safetensors").write_bytes(whole[:-1000])
    with pytest.raises(InputError, match="broken' cannot be loaded: [^\n]*$"):
        make_trainer([SourceDistillation(broken)])


def test_a_teacher_whose_logits_are_scaled_teaches(tmp_path: Path) -> None:
    config = AutoConfig.for_model("granite", **SIZES, logits_scaling=8.0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    trainer = make_trainer([SourceDistillation(str(tmp_path))], duration="1ba")
    trainer.fit()
    assert len(logged(trainer, "distillation/divergence")) == 1


@pytest.mark.parametrize("padded", [96, 128, 80])
def test_vocabularies_that_are_padded_to_other_sizes_are_compared_where_both_have_tokens(
    tmp_path: Path, padded: int
) -> None:
    tokenizer = words(*(f"word{number}" for number in range(80)))
    torch.manual_seed(0)
    teacher = make_model("llama3", seed=5, vocab_size=padded)
    teacher.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    algorithm = SourceDistillation(str(tmp_path), weight=1.0, top_k=None, dtype="float32")
    student = make_model("llama3")
    model = HuggingFaceModel(student, tokenizer, use_logits=True)
    trainer = Trainer(model=model, algorithms=[algorithm], device="cpu", progress_bar=False, loggers=InMemoryLogger())
    ids = token_ids() % 80
    trainer.state.batch = {"input_ids": ids, "labels": ids}
    common = min(96, padded)
    with torch.no_grad():
        trainer.state.outputs, trainer.state.loss = student(ids), torch.zeros(())
        algorithm.apply(Event.AFTER_LOSS, trainer.state, trainer.logger)
        own, other = (model(ids).logits[:, :-1, :common].log_softmax(-1).flatten(0, 1) for model in (student, teacher))
        expected = functional.kl_div(own, other, log_target=True, reduction="batchmean")
    torch.testing.assert_close(trainer.state.loss, expected)
