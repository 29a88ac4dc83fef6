"""A scale that moves from matrices to norms: the same function, of which Adam's steps change more."""

from __future__ import annotations

import copy

import pytest
import torch

from llmshearing.architecture.layouts import LM_HEAD
from llmshearing.architecture.shapes import ModelShape
from llmshearing.pruning.width import hand_to_norms
from tests.models import FAMILIES, make_model, token_ids


@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_stay(family: str) -> None:
    model, ids = make_model(family), token_ids()
    source = ModelShape.from_hf_config(model.config)
    offset = float(source.family.norm.offset)
    with torch.no_grad():
        before = model(ids).logits
        for layer in model.model.layers:
            hand_to_norms(layer, source.layer, 1.5, offset=offset)
        if not source.tie_word_embeddings:
            hand_to_norms(model, [LM_HEAD], 1.5, offset=offset)
        assert (model(ids).logits - before).abs().max() < 1e-5 * before.abs().max()


def test_a_step_of_adam_changes_a_readers_output_by_the_factor() -> None:
    model, ids = make_model("llama3"), token_ids()
    factor, source = 2.0, ModelShape.from_hf_config(model.config)
    moved = []
    for changed in (False, True):
        copied = copy.deepcopy(model)
        layer = copied.model.layers[0]
        if changed:
            hand_to_norms(layer, source.layer, factor, offset=0.0)
        up = layer.mlp.up_proj
        seen: list[torch.Tensor] = []
        up.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0].detach()))
        optimizer = torch.optim.Adam([up.weight], lr=1e-4)
        copied(input_ids=ids, labels=ids).loss.backward()
        before = up(seen[0]).detach()
        optimizer.step()
        moved.append(up(seen[0]).detach() - before)
    torch.testing.assert_close(moved[1], factor * moved[0], rtol=1e-2, atol=1e-5)
