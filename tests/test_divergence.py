"""The divergence from a teacher by itself: its gradient, its chunks, and what it keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from llmshearing import divergence
from llmshearing.divergence import distillation_loss

WIDTH, SHARED = 13, 11  # the student's vocabulary is padded by two


def example(k: int | None, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(2, 5, WIDTH, generator=generator) * 2).to(dtype).requires_grad_()
    whole = (torch.randn(2, 5, SHARED, generator=generator, dtype=torch.float64) * 2 / 1.5).log_softmax(-1)
    labels = torch.randint(0, SHARED, (2, 5), generator=generator)
    labels[0, 2] = labels[1, 0] = -100
    teacher, ids = (whole, None) if k is None else whole.topk(k)
    if dtype != torch.float64:
        teacher = teacher.float()
    return {"logits": logits, "teacher": teacher, "ids": ids, "labels": labels, "vocab_size": SHARED}


@pytest.mark.parametrize("k", [None, 1, 4, SHARED])
def test_gradient_is_that_of_the_loss(k: int | None) -> None:
    case = example(k)
    logits = case.pop("logits")
    assert torch.autograd.gradcheck(lambda x: distillation_loss(x, **case, temperature=1.5), (logits,))
    distillation_loss(logits, **case).backward()
    assert (logits.grad[..., SHARED:] == 0).all()
    assert (logits.grad[0, 1] == 0).all()  # its label does not count
    assert (logits.grad[:, -1] == 0).all()  # it has none
    assert (logits.grad[0, 0] != 0).any()


def test_all_tokens_in_order_are_all_tokens_by_their_ids() -> None:
    ordered, named = distillation_loss(**example(None)), distillation_loss(**example(SHARED))
    torch.testing.assert_close(ordered, named)


@pytest.mark.parametrize("k", [None, 4])
@pytest.mark.parametrize("chunk", [1, 3 * SHARED, 2**24])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, chunk: int, k: int | None) -> None:
    whole = example(k)
    loss = distillation_loss(**whole)
    loss.backward()
    monkeypatch.setattr(divergence, "_CHUNK", chunk)
    parts = example(k)
    again = distillation_loss(**parts)
    again.backward()
    torch.testing.assert_close(again, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(parts["logits"].grad, whole["logits"].grad, rtol=1e-12, atol=1e-15)


def test_half_precision_logits_get_gradients_of_their_own_type() -> None:
    case = example(None, torch.bfloat16)
    wide = case["logits"].detach().float().requires_grad_()
    loss = distillation_loss(**case)
    loss.backward()
    assert loss.dtype == torch.float32
    assert case["logits"].grad.dtype == torch.bfloat16
    distillation_loss(**{**case, "logits": wide}).backward()
    torch.testing.assert_close(case["logits"].grad.float(), wide.grad, rtol=1e-2, atol=1e-4)
    counted = (case["labels"][:, 1:] != -100).unsqueeze(-1)
    student = wide[:, :-1, :SHARED].log_softmax(-1)
    expected = functional.kl_div(student, case["teacher"][:, :-1], log_target=True, reduction="none") * counted
    torch.testing.assert_close(loss, expected.sum() / counted.sum())


def test_nothing_of_the_size_of_the_logits_is_kept_but_the_logits() -> None:
    case = example(4)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        distillation_loss(**case)
    large = [tensor for tensor in kept if tensor.numel() >= case["logits"].numel()]
    assert {tensor.untyped_storage().data_ptr() for tensor in large} == {case["logits"].untyped_storage().data_ptr()}


def test_labels_that_all_do_not_count_are_no_loss() -> None:
    case = example(4)
    case["labels"].fill_(-100)
    loss = distillation_loss(**case)
    loss.backward()
    assert loss == 0
    assert (case["logits"].grad == 0).all()
