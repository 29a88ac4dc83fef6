"""Irregular models: as many parameters, widths of their own in every layer, and stock modules that compute."""

from __future__ import annotations

import pytest
import torch

from llmshearing.architecture.shapes import ModelShape
from llmshearing.errors import InputError
from llmshearing.irregular import build_irregular, irregular_shapes
from tests.models import FAMILIES, make_config, make_model, token_ids

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_any_family_has_as_many_parameters_in_other_widths(family: str) -> None:
    config = make_config(family, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4)
    regular = make_model(family, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4)
    model = build_irregular(config, device=CPU, dtype=torch.float32)
    assert model.num_parameters() == regular.num_parameters()
    assert not any(parameter.is_meta for parameter in model.parameters())
    matrices = [
        {name: tuple(parameter.shape) for name, parameter in layer.named_parameters() if parameter.dim() == 2}
        for layer in model.model.layers
    ]
    assert len({tuple(layer.items()) for layer in matrices}) == 4
    ids = token_ids()
    with torch.no_grad():
        logits = model(ids).logits
        # Read token by token with a cache, as generation does, it computes the same.
        output = model(ids[:, :-1], use_cache=True)
        last = model(ids[:, -1:], past_key_values=output.past_key_values, use_cache=True).logits
    assert torch.isfinite(logits).all()
    assert torch.allclose(last[:, 0], logits[:, -1], atol=1e-4)


def test_widths_add_up_to_those_of_the_regular_shape_and_suit_no_hardware() -> None:
    config = make_config(
        "llama3", hidden_size=512, num_hidden_layers=13, intermediate_size=1024, num_attention_heads=16,
        num_key_value_heads=8, head_dim=32,
    )  # fmt: skip
    shape = ModelShape.from_hf_config(config)
    shapes = irregular_shapes(shape)
    for name in ("intermediate_size", "num_key_value_heads", "num_attention_heads"):
        sizes = [getattr(layer, name) for layer in shapes]
        assert sum(sizes) == 13 * getattr(shape, name)
        assert min(sizes) >= getattr(shape, name) // 2
    assert {layer.num_attention_heads / layer.num_key_value_heads for layer in shapes} == {2.0}
    neurons = [layer.intermediate_size for layer in shapes]
    assert sum(size % 2 for size in neurons) == 12  # one of thirteen has no partner
    assert len(set(neurons)) == 13
    assert shapes == irregular_shapes(shape)
    assert shapes != irregular_shapes(shape, seed=1)


def test_one_layer_has_none() -> None:
    with pytest.raises(InputError, match="A model of one layer has no irregular one"):
        irregular_shapes(ModelShape.from_hf_config(make_config("llama3", num_hidden_layers=1)))
