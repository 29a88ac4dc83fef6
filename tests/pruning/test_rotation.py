"""Turning the residual stream: the same model, whose first hidden dimensions carry most."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from llmshearing.architecture.layouts import rotates
from llmshearing.architecture.shapes import ModelShape
from llmshearing.errors import InputError
from llmshearing.pruning.rotation import (
    Moments,
    Turn,
    principal_components,
    residual_moments,
    rotate_model,
    turn_to_principal_components,
)
from tests.models import FAMILIES, SIZES, make_config, make_model, token_ids

SHARED = Path(__file__).parents[3] / "shared"


def rotation(seed: int = 0) -> torch.Tensor:
    size = SIZES["hidden_size"]
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(matrix).Q


def turned(model: PreTrainedModel, turn: Turn) -> PreTrainedModel:
    model = copy.deepcopy(model)
    rotate_model(model, turn, ModelShape.from_hf_config(model.config))
    return model


def moments_of(model: PreTrainedModel, batches: list[torch.Tensor]) -> Moments:
    return residual_moments(model, batches, ModelShape.from_hf_config(model.config))


def tied_turn(model: PreTrainedModel, moments: Moments) -> Turn:
    return turn_to_principal_components(moments, model.model.norm.weight.detach())


TURNED = [family for family in FAMILIES if rotates(ModelShape.from_hf_config(make_config(family)).family.layout)]
TIED = [family for family in TURNED if "tied" in family]


@pytest.mark.parametrize("family", [family for family in TURNED if family not in TIED])
def test_every_family_predicts_what_it_did(family: str) -> None:
    model, ids = make_model(family), token_ids()
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight *= 0.04  # as in trained models
    before, norm = model(ids).logits.detach(), model.model.norm.weight.detach().clone()
    sizes = {
        name: weight.square().mean().sqrt().item() for name, weight in model.named_parameters() if weight.dim() == 2
    }
    after = (model := turned(model, Turn(rotation())))(ids).logits.detach()
    assert (after - before).abs().max() < 1e-4 * before.abs().max()
    assert torch.allclose(model.model.norm.weight, norm.square().mean().sqrt().expand_as(norm))
    for name, weight in model.named_parameters():  # as large as they were, so that Adam's steps are as small
        assert name not in sizes or weight.square().mean().sqrt().item() == pytest.approx(sizes[name], rel=0.1)


@pytest.mark.parametrize("family", TIED)
def test_tied_embeddings_stay_tied_and_are_exact_where_the_final_norm_is_even(family: str) -> None:
    model, ids = make_model(family), token_ids()
    with torch.no_grad():
        model.model.norm.weight.fill_(1.7)
    before = model(ids).logits.detach()
    for turn in (Turn(rotation()), tied_turn(model, moments_of(model, [ids]))):
        after = turned(model, turn)
        assert (after(ids).logits - before).abs().max() < 1e-4 * before.abs().max()
        assert after.lm_head.weight is after.model.embed_tokens.weight
        torch.testing.assert_close(after.model.norm.weight.detach(), torch.full((SIZES["hidden_size"],), 1.7))


@pytest.mark.parametrize("family", TIED)
def test_uneven_final_norm_of_tied_embeddings_goes_into_the_matrix(family: str) -> None:
    model, ids = make_model(family, num_hidden_layers=1, initializer_range=0.02), token_ids(batch=8)
    with torch.no_grad():
        model.model.norm.weight[5] = -0.4  # no square root
        model.model.norm.weight[7] = 0.0
    before = model(ids).logits.detach()
    turn = tied_turn(model, moments_of(model, [ids]))
    assert turn.stretch is not None
    assert (turn.stretch > 0).all()

    def error(turn: Turn) -> float:
        return ((turned(model, turn)(ids).logits - before).std() / before.std()).item()

    # What is left is how the RMS of the stretched stream varies over tokens: much, with 48 random dimensions.
    assert error(turn) < 0.5 * error(Turn(turn.rotation))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in TURNED])
def test_a_stream_behind_norms_is_not_turned(family: str) -> None:
    model = make_model(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match="cannot be turned.*Can be turned: glm, granite, llama, mistral, phi3, qwen2"):
        turned(model, Turn(rotation()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.skipif(not (SHARED / "models/stories260K").is_dir(), reason="no ../shared/models/stories260K")
def test_a_trained_tied_model_keeps_its_loss() -> None:
    model = AutoModelForCausalLM.from_pretrained(SHARED / "models/stories260K").float().eval()
    rows = torch.from_numpy(np.load(SHARED / "golden/stories_self/rows.npy")[:64].astype(np.int64))
    before = model(input_ids=rows, labels=rows).loss.item()
    turn = tied_turn(model, moments_of(model, [rows]))
    after = turned(model, turn)(input_ids=rows, labels=rows).loss.item()
    assert after == pytest.approx(before, abs=0.05)  # 0.026 here; 0.13 with the final norm's diagonal alone


def test_principal_components_order_the_stream_of_the_turned_model() -> None:
    model, batches = make_model("llama3"), [token_ids(seed=seed) for seed in range(3)]
    moments = moments_of(model, batches)
    assert moments.total.trace().item() == pytest.approx(SIZES["hidden_size"], rel=1e-3)  # RMS one
    assert len(moments.squares) == 2 * SIZES["num_hidden_layers"] + 1
    mean = torch.stack(list(moments.squares.values())).mean(0)
    torch.testing.assert_close(mean, moments.total.diagonal())
    turn = turn_to_principal_components(moments)
    torch.testing.assert_close(turn.rotation.T @ turn.rotation, torch.eye(len(mean), dtype=torch.float64))
    after = moments_of(turned(model, turn), batches).total
    strengths = torch.linalg.eigvalsh(moments.total).flip(-1)
    torch.testing.assert_close(after, strengths.diag(), atol=1e-4, rtol=1e-4)


def test_dimensions_that_stay_are_not_mixed_with_others() -> None:
    model = make_model("llama-tied")
    with torch.no_grad():
        model.model.norm.weight[5] = -0.4
        model.model.embed_tokens.weight[:, 11] *= 100  # massive at every norm
    turn = tied_turn(model, moments_of(model, [token_ids()]))
    for dimension in (5, 11):
        assert sorted(turn.rotation[dimension].abs().tolist())[-2:] == pytest.approx([0, 1], abs=1e-12)
        assert turn.stretch is not None
        assert turn.stretch[dimension] == 1
    assert turn.rotation[11, 0].abs() == pytest.approx(1)  # the strongest comes first all the same


def test_directions_do_not_depend_on_the_solvers_signs() -> None:
    turn = principal_components(moments_of(make_model("llama3"), [token_ids()]).total)
    assert (turn.gather(0, turn.abs().argmax(0, keepdim=True)) > 0).all()


def test_hooks_are_gone_afterwards() -> None:
    model = make_model("llama3")
    moments_of(model, [token_ids()])
    assert not any(module._forward_pre_hooks for module in model.modules())
