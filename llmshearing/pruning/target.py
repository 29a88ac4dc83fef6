"""From what the user wants the model to become, to the groups of units that masks choose among."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmshearing.architecture.axes import DIMENSIONS, HEADS, HIDDEN, INTERMEDIATE, KV_HEADS, LAYERS, Dimension
from llmshearing.architecture.shapes import ModelShape
from llmshearing.arguments import whole
from llmshearing.errors import InputError, unknown_name
from llmshearing.pruning.hard_concrete import MAX_KEEP_PROBABILITY, MIN_KEEP_PROBABILITY


@dataclass(frozen=True)
class UnitGroup:
    """The masks of one dimension: ``shape[:-1]`` groups of ``shape[-1]`` units, ``num_kept`` of each group stay.

    ======================  ======================  =====================================================
    dimension               shape                   one unit
    ======================  ======================  =====================================================
    ``num_hidden_layers``   ``(L,)``                a decoder layer, its attention and its MLP
    ``hidden_size``         ``(d,)``                a dimension of the residual stream
    ``intermediate_size``   ``(L, I)``              a neuron of a layer's MLP
    ``num_key_value_heads`` ``(L, KV)``             a key-value head with all the query heads that share it
    ``num_attention_heads`` ``(L, KV, H / KV)``     one query head of a key-value head
    ======================  ======================  =====================================================
    """

    dimension: Dimension
    shape: tuple[int, ...]
    num_kept: int
    multiple: int = 1  # what one unit of every group adds to the dimension's size in the config

    @property
    def num_units(self) -> int:
        """Units in one group."""
        return self.shape[-1]

    @property
    def num_groups(self) -> int:
        """How many groups there are."""
        return math.prod(self.shape[:-1])


def check_target(target: Any) -> dict[str, int]:
    """A target for any source, as a dictionary of its own.

    Raises:
        InputError: it is no mapping of dimensions to whole numbers.
    """
    if not isinstance(target, Mapping):
        raise InputError(f"target is {target!r}; give sizes by name, such as {{'{HIDDEN}': 2048, '{LAYERS}': 24}}.")
    if not target:
        raise InputError(f"The target names no dimension to prune. Give at least one of {', '.join(DIMENSIONS)}.")
    for name in target:
        if name not in DIMENSIONS:
            raise unknown_name("target dimension", name, DIMENSIONS)
    return {
        name: whole(f"target.{name}", size, "it must be a whole number above 0", least=1)
        for name, size in target.items()
    }


def resolve_target(source: ModelShape, target: Mapping[str, int]) -> ModelShape:
    """The full target shape that a user's partial ``target`` means for ``source``.

    A dimension left out stays as it is, with one exception that geometry forces: a key-value head leaves together
    with its query heads, so ``num_key_value_heads`` alone implies ``num_attention_heads`` in proportion. Where every
    query head has its own key-value head, ``num_attention_heads`` alone means both.

    Raises:
        InputError: an unknown dimension, or a size that the masks cannot reach; names the nearest sizes they can.
    """
    wanted: dict[str, Any] = check_target(target)
    for name, size in wanted.items():
        largest = getattr(source, name)
        if not 1 <= size <= largest:
            raise InputError(
                f"target.{name} is {size}, but the source model has {largest}: choose a size from 1 to {largest}."
            )

    if HEADS in wanted and KV_HEADS not in wanted and source.queries_per_group == 1:
        wanted[KV_HEADS] = wanted[HEADS]
    groups = wanted.get(KV_HEADS, source.num_key_value_heads)
    if HEADS not in wanted:
        wanted[HEADS] = groups * source.queries_per_group
    heads = wanted[HEADS]
    if heads % groups or heads // groups > source.queries_per_group:
        possible = [groups * queries for queries in range(1, source.queries_per_group + 1)]
        nearest = sorted(sorted(possible, key=lambda size: abs(size - heads))[:2])
        raise InputError(
            f"target.{HEADS} is {heads}, which {groups} key-value heads cannot share evenly "
            f"(each has {source.queries_per_group} query heads in the source). "
            f"Nearest possible: {' or '.join(map(str, nearest))}."
        )
    return dataclasses.replace(source, **wanted)


def groups_to_prune(
    source: ModelShape, target: Mapping[str, int], *, selection: str
) -> tuple[ModelShape, list[UnitGroup]]:
    """The full target shape, and the groups of units to choose among.

    Raises:
        InputError: a target that cannot be reached, by ``selection`` or at all.
    """
    shape = resolve_target(source, target)
    groups = unit_groups(source, shape)
    if not groups:
        raise InputError(f"The target equals the source model ({source}): there is nothing to prune.")
    if selection == "learned":
        for group in groups:
            _check_learnable(group)
    return shape, groups


def _check_learnable(group: UnitGroup) -> None:
    """Beyond these sizes all of a group's masks end at the same bound, and nothing tells its units apart."""
    smallest = math.floor(MIN_KEEP_PROBABILITY * group.num_units) + 1
    largest = math.ceil(MAX_KEEP_PROBABILITY * group.num_units) - 1
    if not smallest <= group.num_kept <= largest:
        raise InputError(
            f"target.{group.dimension} is {group.num_kept * group.multiple}, but learned masks reach "
            f"{smallest * group.multiple} to {largest * group.multiple}: each unit of a group stays with a probability "
            f"within {MIN_KEEP_PROBABILITY:.1%} and {MAX_KEEP_PROBABILITY:.1%}. Use selection 'importance', or prune "
            "in stages."
        )


def unit_groups(source: ModelShape, target: ModelShape) -> list[UnitGroup]:
    """The groups whose size differs between the two shapes, in the order of ``DIMENSIONS``."""
    layers, groups = source.num_hidden_layers, source.num_key_value_heads
    all_groups = [
        UnitGroup(LAYERS, (layers,), target.num_hidden_layers),
        UnitGroup(HIDDEN, (source.hidden_size,), target.hidden_size),
        UnitGroup(INTERMEDIATE, (layers, source.intermediate_size), target.intermediate_size),
        UnitGroup(KV_HEADS, (layers, groups), target.num_key_value_heads),
        UnitGroup(
            HEADS, (layers, groups, source.queries_per_group), target.queries_per_group, target.num_key_value_heads
        ),
    ]
    return [group for group in all_groups if group.num_kept < group.num_units]
