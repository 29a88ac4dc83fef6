"""Errors and records of shearing; that it is exact stands in test_exactness."""

from __future__ import annotations

import pytest
import torch

from llmshearing.architecture.shapes import ModelShape
from llmshearing.errors import InputError
from llmshearing.pruning.shear import Shears, shear_state_dict
from llmshearing.pruning.target import resolve_target
from tests.models import make_model

TARGET = {"hidden_size": 24, "num_attention_heads": 4}


@pytest.fixture
def given():
    """A state dict, masks and shapes that fit."""
    model = make_model("llama3")
    source = ModelShape.from_hf_config(model.config)
    hidden, queries = torch.zeros(48), torch.zeros(4, 4, 2)
    hidden[::2], queries[..., 1] = 1, 0.5
    masks = {"hidden_size": hidden, "num_attention_heads": queries}
    return model.state_dict(), masks, source, resolve_target(source, TARGET)


def test_what_is_kept_is_described_per_layer(given) -> None:
    _, masks, source, target = given
    kept = Shears(masks, source, target).describe()
    assert kept["layers"] == [0, 1, 2, 3]
    assert kept["hidden_size"] == list(range(0, 48, 2))
    assert kept["per_layer"][2]["num_attention_heads"] == [1, 3, 5, 7]
    assert kept["per_layer"][2]["num_key_value_heads"] == [0, 1, 2, 3]


def test_missing_masks_are_refused(given) -> None:
    state, masks, source, target = given
    del masks["hidden_size"]
    with pytest.raises(InputError, match="no masks for hidden_size, which goes from 48 to 24"):
        shear_state_dict(state, masks, source, target)


def test_masks_that_keep_another_number_of_units_are_refused(given) -> None:
    state, masks, source, target = given
    masks["hidden_size"][1] = 1
    with pytest.raises(InputError, match=r"hidden_size keep \[25\] units per group; the target is 24"):
        shear_state_dict(state, masks, source, target)


def test_masks_of_another_shape_are_refused(given) -> None:
    state, masks, source, target = given
    masks["hidden_size"] = torch.ones(47)
    with pytest.raises(InputError, match=r"hidden_size have shape \(47,\), not \(48,\)"):
        shear_state_dict(state, masks, source, target)


def test_masks_that_are_not_finite_are_refused(given) -> None:
    state, masks, source, target = given
    masks["hidden_size"][0] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        shear_state_dict(state, masks, source, target)


def test_foreign_tensors_are_refused_by_name(given) -> None:
    state, masks, source, target = given
    with pytest.raises(InputError, match=r"'model.layers.0.mlp.experts.weight' is not part of a .llama."):
        shear_state_dict({**state, "model.layers.0.mlp.experts.weight": torch.ones(1)}, masks, source, target)
    with pytest.raises(InputError, match="beyond the 4 expected"):
        shear_state_dict({"model.layers.9.input_layernorm.weight": torch.ones(48)}, masks, source, target)


def test_weights_of_another_size_are_refused_by_name(given) -> None:
    _, masks, source, target = given
    with pytest.raises(InputError, match=r"'lm_head.weight' has shape \(96, 40\), but axis 1 should have 48"):
        shear_state_dict({"lm_head.weight": torch.ones(96, 40)}, masks, source, target)
