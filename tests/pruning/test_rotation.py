"""Turning the residual stream: the same model, whose first hidden dimensions carry most."""

from __future__ import annotations

import pytest
import torch

from llmshearing.pruning.rotation import principal_components, residual_second_moment, rotate_state_dict
from llmshearing.shape import ModelShape
from tests.models import FAMILIES, SIZES, make_model, token_ids


def rotation(seed: int = 0) -> torch.Tensor:
    size = SIZES["hidden_size"]
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(matrix).Q


@pytest.mark.parametrize("family", [family for family in FAMILIES if "tied" not in family])
def test_every_family_predicts_what_it_did(family: str) -> None:
    model, ids = make_model(family), token_ids()
    before = model(ids).logits.detach()
    model.load_state_dict(
        rotate_state_dict(model.state_dict(), rotation(), ModelShape.from_hf_config(model.config)), strict=True
    )
    after = model(ids).logits.detach()
    assert (after - before).abs().max() < 1e-4 * before.abs().max()
    assert (model.model.norm.weight == 1).all()


@pytest.mark.parametrize("family", [family for family in FAMILIES if "tied" in family])
def test_tied_embeddings_stay_tied_and_are_exact_where_the_final_norm_is_even(family: str) -> None:
    model, ids = make_model(family), token_ids()
    with torch.no_grad():
        model.model.norm.weight.fill_(1.7)
    before = model(ids).logits.detach()
    model.load_state_dict(rotate_state_dict(model.state_dict(), rotation(), ModelShape.from_hf_config(model.config)))
    after = model(ids).logits.detach()
    assert (after - before).abs().max() < 1e-4 * before.abs().max()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    torch.testing.assert_close(model.model.norm.weight.detach(), torch.full((SIZES["hidden_size"],), 1.7))


def test_uneven_final_norm_of_tied_embeddings_becomes_its_diagonal() -> None:
    model = make_model("llama-tied")
    weight = model.model.norm.weight.detach().double()
    rotated = rotate_state_dict(model.state_dict(), rotation(), ModelShape.from_hf_config(model.config))
    expected = torch.einsum("ki,k,ki->i", rotation(), weight, rotation())
    torch.testing.assert_close(rotated["model.norm.weight"].double(), expected)


def test_principal_components_order_the_stream_of_the_turned_model() -> None:
    model, batches = make_model("llama3"), [token_ids(seed=seed) for seed in range(3)]
    moment = residual_second_moment(model, batches)
    assert moment.trace().item() == pytest.approx(SIZES["hidden_size"], rel=1e-3)  # RMS one
    turn = principal_components(moment)
    torch.testing.assert_close(turn.T @ turn, torch.eye(len(turn), dtype=turn.dtype))
    shape = ModelShape.from_hf_config(model.config)
    model.load_state_dict(rotate_state_dict(model.state_dict(), turn, shape))
    after = residual_second_moment(model, batches)
    strengths = torch.linalg.eigvalsh(moment).flip(-1)
    torch.testing.assert_close(after, strengths.diag(), atol=1e-4, rtol=1e-4)


def test_directions_do_not_depend_on_the_solvers_signs() -> None:
    moment = residual_second_moment(make_model("llama3"), [token_ids()])
    turn = principal_components(moment)
    assert (turn.gather(0, turn.abs().argmax(0, keepdim=True)) > 0).all()


def test_hooks_are_gone_afterwards() -> None:
    model = make_model("llama3")
    residual_second_moment(model, [token_ids()])
    assert not any(module._forward_pre_hooks for module in model.modules())
