from __future__ import annotations

import pytest
from transformers import AutoConfig

from llmshearing import ModelShape
from llmshearing.architecture.shapes import parameter_shapes
from tests.models import FAMILIES, make_config, make_model

LLAMA = {"head_dim": 128, "vocab_size": 32000}
KNOWN = [
    ((4096, 11008, 32, 32, 32), 6_738_415_616),
    ((2560, 6912, 32, 20, 20), 2_701_560_320),
    ((2048, 5504, 24, 16, 16), 1_345_423_360),
    ((1024, 2816, 24, 8, 8), 373_867_520),
]


@pytest.mark.parametrize(("sizes", "parameters"), KNOWN)
def test_parameter_counts_of_the_paper(sizes: tuple[int, ...], parameters: int) -> None:
    assert ModelShape(*sizes, **LLAMA).num_parameters() == parameters


@pytest.mark.parametrize("family", FAMILIES)
def test_parameter_count_equals_that_of_the_real_model(family: str) -> None:
    model = make_model(family)
    shape = ModelShape.from_hf_config(model.config)
    assert shape.num_parameters() == model.num_parameters()
    assert ModelShape.from_dict(shape.to_dict()) == shape


@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_shapes_are_those_of_the_real_model(family: str) -> None:
    model = make_model(family)
    found = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    wanted = parameter_shapes(ModelShape.from_hf_config(model.config))
    assert found == wanted


def test_a_shape_of_an_earlier_checkpoint_names_no_family_and_is_the_same() -> None:
    shape = ModelShape.from_hf_config(make_config("qwen2"))
    values = shape.to_dict()
    assert values.pop("model_type") == "qwen2"
    old = ModelShape.from_dict(values)
    assert old == shape
    assert parameter_shapes(old) == parameter_shapes(shape)


def test_unsupported_architecture_is_refused_with_the_list_of_supported_ones() -> None:
    with pytest.raises(ValueError, match="'gpt2' are not supported. Supported: gemma2, .*llama, mistral, .*qwen3"):
        ModelShape.from_hf_config(AutoConfig.for_model("gpt2"))
