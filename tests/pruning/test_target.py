from __future__ import annotations

import dataclasses

import pytest
import torch

from llmshearing.architecture.shapes import ModelShape
from llmshearing.errors import InputError
from llmshearing.pruning.hard_concrete import (
    LOG_ALPHA_MAX,
    LOG_ALPHA_MIN,
    MAX_KEEP_PROBABILITY,
    MIN_KEEP_PROBABILITY,
    keep_probability,
)
from llmshearing.pruning.target import groups_to_prune, resolve_target, unit_groups

GQA = ModelShape(48, 80, 4, 8, 4, 8, 96)
MHA = ModelShape(48, 80, 4, 8, 8, 8, 96)


def groups(source: ModelShape, **target: int) -> dict[str, tuple[tuple[int, ...], int]]:
    return {g.dimension: (g.shape, g.num_kept) for g in unit_groups(source, resolve_target(source, target))}


def test_what_the_target_leaves_out_has_no_masks() -> None:
    assert groups(GQA, intermediate_size=32) == {"intermediate_size": ((4, 80), 32)}
    assert groups(GQA, num_hidden_layers=3, hidden_size=48) == {"num_hidden_layers": ((4,), 3)}


def test_query_heads_alone_are_pruned_evenly_within_every_group() -> None:
    assert groups(GQA, num_attention_heads=4) == {"num_attention_heads": ((4, 4, 2), 1)}


def test_key_value_heads_alone_take_their_query_heads_along() -> None:
    assert groups(GQA, num_key_value_heads=1) == {"num_key_value_heads": ((4, 4), 1)}
    assert resolve_target(GQA, {"num_key_value_heads": 1}).num_attention_heads == 2


def test_both_kinds_of_heads_combine() -> None:
    assert groups(GQA, num_key_value_heads=2, num_attention_heads=2) == {
        "num_key_value_heads": ((4, 4), 2),
        "num_attention_heads": ((4, 4, 2), 1),
    }


def test_without_shared_key_value_heads_a_head_is_one_unit() -> None:
    assert groups(MHA, num_attention_heads=3) == {"num_key_value_heads": ((4, 8), 3)}
    assert resolve_target(MHA, {"num_attention_heads": 3}).num_key_value_heads == 3


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({}, "names no dimension"),
        ({"hiden_size": 24}, "Did you mean 'hidden_size'"),
        ({"hidden_size": 64}, "target.hidden_size is 64, but the source model has 48"),
        ({"num_hidden_layers": 0}, "target.num_hidden_layers is 0"),
        ({"intermediate_size": -8}, "target.intermediate_size is -8"),
        ({"intermediate_size": 40.0}, "must be a whole number"),
        ({"hidden_size": True}, "must be a whole number"),
        ({"num_attention_heads": 6}, "target.num_attention_heads is 6.* Nearest possible: 4 or 8"),
        ({"num_key_value_heads": 2, "num_attention_heads": 8}, "Nearest possible: 2 or 4"),
    ],
)
def test_impossible_targets_are_refused_with_the_field_and_the_nearest_sizes(target: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_target(GQA, target)


@pytest.mark.parametrize(("units", "smallest", "largest"), [(1024, 49, 1021), (32, 2, 31), (4, 1, 3)])
def test_learned_masks_reach_what_their_probabilities_allow(units: int, smallest: int, largest: int) -> None:
    source = dataclasses.replace(MHA, intermediate_size=units)
    for size in (smallest, largest):
        assert MIN_KEEP_PROBABILITY < size / units < MAX_KEEP_PROBABILITY
        groups_to_prune(source, {"intermediate_size": size}, selection="learned")
    for size in {smallest - 1, largest + 1} - {0, units}:
        with pytest.raises(
            InputError, match=f"target.intermediate_size is {size}, but learned masks reach {smallest} to"
        ):
            groups_to_prune(source, {"intermediate_size": size}, selection="learned")
        groups_to_prune(source, {"intermediate_size": size}, selection="importance")


def test_bounds_of_the_probability_are_those_of_the_parameter() -> None:
    bounds = keep_probability(torch.tensor([LOG_ALPHA_MIN, LOG_ALPHA_MAX], dtype=torch.float64))
    assert bounds.tolist() == pytest.approx([MIN_KEEP_PROBABILITY, MAX_KEEP_PROBABILITY], rel=1e-12)
