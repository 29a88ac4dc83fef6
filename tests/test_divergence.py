"""The divergence from a teacher: its value, its gradient, and what it keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from llmshearing import divergence
from llmshearing.divergence import distillation_loss
from tests.models import SIZES


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


def by_autograd(logits: Tensor, teacher: Tensor, ids: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The definition, written out."""
    student = (logits / temperature).log_softmax(-1).gather(-1, ids)
    value = (teacher.exp() * (teacher - student)).sum(-1)
    if ids.shape[-1] < logits.shape[-1]:
        rest = [(1 - x.exp().sum(-1)).clamp(min=1e-6) for x in (teacher, student)]
        value = value + rest[0] * (rest[0] / rest[1]).log()
    counted = labels[:, 1:] != -100
    return temperature**2 * value[:, :-1][counted].mean()


@pytest.fixture(params=[1, 200, 2**24], ids=["a-row", "two-rows", "one-chunk"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of one position, of two with a shorter last one, and of all."""
    monkeypatch.setattr(divergence, "CHUNK", request.param)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("k", [3, SIZES["vocab_size"]])
@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_value_and_gradient_are_those_of_the_definition(k: int, temperature: float) -> None:
    case = example(k)
    del case["whole"]
    results = []
    for loss in (distillation_loss, by_autograd):
        logits = case["logits"].clone().requires_grad_()
        value = loss(**{**case, "logits": logits}, temperature=temperature)
        (3 * value).backward()
        results.append((value.detach(), logits.grad))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize(("k", "in_order"), [(3, False), (SIZES["vocab_size"], False), (SIZES["vocab_size"], True)])
def test_gradient_is_that_of_finite_differences(k: int, in_order: bool) -> None:
    case = example(k)
    whole = case.pop("whole").double()
    logits = case["logits"].double().requires_grad_()
    teacher, ids = case["teacher"].double(), case["ids"]
    if in_order:
        teacher, ids = (whole / 1.5).log_softmax(-1), None
    assert torch.autograd.gradcheck(
        lambda x: distillation_loss(x, teacher, ids, case["labels"], temperature=1.5), logits
    )


def test_a_teacher_that_is_certain_moves_no_token_that_it_does_not_compare() -> None:
    """Both sides of the clamp of the others' probability."""
    logits = torch.zeros(1, 2, 8)
    logits[..., 0] = 40.0  # nothing is left for the others
    logits.requires_grad_()
    teacher, ids = torch.full((1, 2, 2), 0.5).log(), torch.tensor([[[0, 1], [0, 1]]])
    labels = torch.ones(1, 2, dtype=torch.long)
    distillation_loss(logits, teacher, ids, labels).backward()
    expected = logits.detach().clone().requires_grad_()
    by_autograd(expected, teacher, ids, labels, 1.0).backward()
    torch.testing.assert_close(logits.grad, expected.grad)


def test_positions_that_are_not_counted_may_hold_anything() -> None:
    case = example(3)
    del case["whole"]
    expected = distillation_loss(**case)
    case["logits"][:, -1] = torch.inf
    case["logits"][0, 2] = torch.nan  # whose label is -100
    torch.testing.assert_close(distillation_loss(**case), expected)
    case["labels"][:] = -100
    assert distillation_loss(**case) == 0


def test_bfloat16_logits_are_kept_as_they_are_and_get_a_gradient_of_their_type() -> None:
    torch.manual_seed(0)
    student = torch.randn(2, 64, 4096, dtype=torch.bfloat16, requires_grad=True)
    values, ids = torch.randn(2, 64, 4096).log_softmax(-1).topk(8)
    logits = student * 1
    kept: list[Tensor] = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        loss = distillation_loss(logits, values, ids, torch.zeros(2, 64, dtype=torch.long))
    others = [tensor for tensor in kept if tensor.untyped_storage().data_ptr() != logits.untyped_storage().data_ptr()]
    assert sum(tensor.nbytes for tensor in others) < 0.05 * logits.numel()  # bytes
    assert loss.dtype == torch.float32
    loss.backward()
    assert student.grad.dtype == torch.bfloat16
    full = student.detach().float().requires_grad_()
    by_autograd(full, values, ids, torch.zeros(2, 64, dtype=torch.long), 1.0).backward()
    torch.testing.assert_close(student.grad.float(), full.grad, rtol=0.01, atol=1e-8)
