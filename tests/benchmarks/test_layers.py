"""Layers that are kept evenly, in a benchmark's own choice of units."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.quality.layers import even_layers, with_even_layers
from llmshearing.architecture.shapes import ModelShape
from llmshearing.pruning.scores import Scores, all_groups, mark_of


@pytest.mark.parametrize(
    ("number", "kept", "layers"),
    [(6, 3, [0, 3, 5]), (6, 6, [0, 1, 2, 3, 4, 5]), (30, 4, [0, 10, 19, 29]), (5, 2, [0, 4]), (5, 1, [0])],
)
def test_layers_are_kept_evenly(number: int, kept: int, layers: list[int]) -> None:
    assert even_layers(number, kept) == layers


def test_every_number_of_layers_can_be_kept() -> None:
    for number in range(1, 40):
        for kept in range(1, number + 1):
            assert len(set(even_layers(number, kept))) == kept


def test_all_other_units_are_kept_by_their_scores(tmp_path: Path) -> None:
    shape = ModelShape(
        hidden_size=8,
        intermediate_size=6,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=2,
        vocab_size=11,
    )
    units = {group.dimension: torch.rand(group.shape) for group in all_groups(shape)}
    Scores(shape, units, mark_of(torch.rand(11, 8))).save(tmp_path / "scores.safetensors")
    target = {"num_hidden_layers": 3, "hidden_size": 4, "intermediate_size": 3, "num_attention_heads": 2}
    given = Scores.load(tmp_path / "scores.safetensors")
    _, before = given.masks(target)
    _, after = Scores.load(with_even_layers(tmp_path / "scores.safetensors", 3, tmp_path / "even")).masks(target)
    assert after["num_hidden_layers"].flatten().tolist() == [1, 0, 0, 1, 0, 1]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before if name != "num_hidden_layers")
