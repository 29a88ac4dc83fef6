"""The shapes within a budget that hardware likes and training repairs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

from llmshearing.architecture.shapes import ModelShape
from llmshearing.choose_shape.budget import Budget
from llmshearing.errors import InputError

# What may go in one step. Depth buys latency, width keeps reasoning; what goes beyond these is not made up for by
# training of a usual length (Muralidharan et al., 2024, "Compact Language Models via Pruning and Knowledge
# Distillation"; Sreenivas et al., 2024, "LLM Pruning and Distillation in Practice").
DEPTH, WIDTH = 0.8, 0.6
_NO_CAP = 0.125
_STEPS = (128, 64, 32, 16, 8, 4, 2, 1)


@dataclass(frozen=True)
class Found:
    """Candidates.

    Args:
        shapes: within the budget, in no order.
        capped: whether they keep what :data:`DEPTH` and :data:`WIDTH` say.
        within: whether they are within the budget, and not only the nearest ones.
    """

    shapes: tuple[ModelShape, ...]
    capped: bool
    within: bool


def find(source: ModelShape, budget: Budget) -> Found:
    """All shapes of even sizes within a budget, of those that lose little in each dimension if there are some.

    Hidden sizes and neurons are multiples of 128, or of less in a small model. Heads go with the key-value heads that
    they share, of which an even number stays if the source has one. Where heads fill the hidden size in the source,
    they do in the candidates.

    Raises:
        InputError: not even the smallest shape is small enough.
    """
    for depth, width, capped in ((DEPTH, WIDTH, True), (_NO_CAP, _NO_CAP, False)):
        shapes = set(_near(source, budget, depth, width))
        if within := tuple(shape for shape in shapes if budget.has(shape)):
            return Found(within, capped, within=True)
        if capped and min(map(budget.of, shapes)) < budget.wanted:
            break  # the budget is between shapes, whose sizes go in steps
    small = [shape for shape in shapes if budget.of(shape) <= budget.wanted * budget.high]
    if not small:
        raise InputError(
            f"{budget.wanted:,.0f} {budget.name} are too few: with an eighth of every dimension the model has more. "
            "Shear a smaller one."
        )
    nearest = sorted(small, key=lambda shape: budget.wanted - budget.of(shape))[:8]
    return Found(tuple(nearest), capped, within=False)


def _near(source: ModelShape, budget: Budget, depth: float, width: float) -> Iterator[ModelShape]:
    """Shapes whose number of neurons brings them next to the budget, for all other sizes."""
    step = step_of(source.intermediate_size)
    sizes = _multiples(source.intermediate_size, step, width)
    for hidden, groups in _widths(source, width):
        for layers in range(math.ceil(depth * source.num_hidden_layers), source.num_hidden_layers + 1):
            shape = dataclasses.replace(
                source,
                hidden_size=hidden,
                num_hidden_layers=layers,
                num_key_value_heads=groups,
                num_attention_heads=groups * source.queries_per_group,
                intermediate_size=sizes[0],
            )
            least, more = budget.of(shape), budget.of(_with(shape, sizes[0] + step))
            best = (budget.wanted - least) / (more - least)  # steps from the first size on; cost is linear in neurons
            for number in {min(max(0, steps), len(sizes) - 1) for steps in (math.floor(best), math.ceil(best))}:
                if (made := _with(shape, sizes[number])) != source:
                    yield made


def _widths(source: ModelShape, width: float) -> Iterator[tuple[int, int]]:
    """Hidden sizes with numbers of key-value heads."""
    step = step_of(source.hidden_size)
    pairs = 2 if source.num_key_value_heads % 2 == 0 else 1  # so that two devices can share them
    groups = _multiples(source.num_key_value_heads, pairs, width)
    per_group = source.queries_per_group * source.head_dim
    if per_group * source.num_key_value_heads == source.hidden_size:
        fitting = [(per_group * number, number) for number in groups if per_group * number % step == 0]
        yield from fitting or [(per_group * number, number) for number in groups]
    else:
        yield from ((hidden, number) for hidden in _multiples(source.hidden_size, step, width) for number in groups)


def _multiples(size: int, step: int, least: float) -> list[int]:
    """Ascending, up to the size itself."""
    return [*range(max(1, math.ceil(least * size / step)) * step, size, step), size]


def step_of(size: int) -> int:
    """What a size should be a multiple of: the largest power of two up to 128 that it is 16 times of."""
    return next(step for step in _STEPS if size >= 16 * step or step == 1)


def _with(shape: ModelShape, intermediate_size: int) -> ModelShape:
    return dataclasses.replace(shape, intermediate_size=intermediate_size)


def stages(source: ModelShape, wanted: int) -> list[int]:
    """Parameters after each step of a plan in which no step takes more than half; ``wanted`` is the last."""
    total = source.num_parameters()
    number = max(1, math.ceil(math.log2(total / wanted)))
    return [round(total * (wanted / total) ** (stage / number)) for stage in range(1, number)] + [wanted]
