"""What a dropped layer re-indexes, and which sheared models have no config."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from llmshearing.architecture.config import check_prunable, sheared_config
from llmshearing.architecture.shapes import ModelShape
from llmshearing.errors import InputError
from llmshearing.pruning.target import resolve_target
from tests.models import make_config


def sheared(family: str, kept: list[int], **changes: Any) -> dict[str, Any]:
    config = make_config(family, **changes)
    target = resolve_target(ModelShape.from_hf_config(config), {"num_hidden_layers": len(kept)})
    return sheared_config(config.to_dict(), target, kept)


def test_kinds_of_attention_go_with_their_layers() -> None:
    kinds = make_config("gemma3-tied").layer_types
    assert len(set(kinds)) == 2
    assert sheared("gemma3-tied", [0, 3])["layer_types"] == [kinds[0], kinds[3]]


def test_layers_without_rotary_positions_stay_without() -> None:
    assert sheared("smollm3", [0, 2])["no_rope_layers"] == [0, 1]


@pytest.mark.parametrize(("kept", "windows_from"), [([0, 1], 2), ([0, 3], 1), ([2, 3], 0), ([1, 2, 3], 1)])
def test_layers_from_max_window_layers_on_keep_their_windows(kept: list[int], windows_from: int) -> None:
    config = AutoConfig.for_model(**sheared("qwen2-window", kept))
    assert config.max_window_layers == windows_from
    old = make_config("qwen2-window").layer_types
    assert config.layer_types == [old[layer] for layer in kept]


def test_layers_that_alternate_by_index_are_not_dropped() -> None:
    config = make_config("gemma2").to_dict()
    config.pop("layer_types")  # as of transformers before 4.53
    source = ModelShape.from_hf_config(make_config("gemma2"))
    with pytest.raises(InputError, match="none can be dropped. Install transformers 4.53 or later"):
        check_prunable(config, resolve_target(source, {"num_hidden_layers": 2}))
    check_prunable(config, resolve_target(source, {"hidden_size": 24}))


def test_long_rope_keeps_its_number_of_frequencies() -> None:
    rope = {"type": "longrope", "long_factor": [1.0] * 3, "short_factor": [1.0] * 3}
    config = make_config("phi3", rope_scaling=rope)
    source = ModelShape.from_hf_config(config)
    with pytest.raises(InputError, match="num_attention_heads is 3, the source's 6.*in proportion, or neither"):
        check_prunable(config.to_dict(), resolve_target(source, {"hidden_size": 24}))
    target = resolve_target(source, {"hidden_size": 24, "num_attention_heads": 4})
    check_prunable(config.to_dict(), target)
    AutoConfig.for_model(**sheared_config(config.to_dict(), target, range(4)))  # which transformers takes
