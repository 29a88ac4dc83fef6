"""What a user can afford: parameters, memory, or time for a token."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from llmshearing.architecture.shapes import ModelShape
from llmshearing.compute import forward_flops
from llmshearing.errors import InputError

BYTES = 2  # of a weight, a key or a value when the model is served: bfloat16
_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
_NUMBER = re.compile(r"(\d+(?:\.\d*)?(?:e[+-]?\d+)?)\s*([a-z]*)", re.IGNORECASE)


@dataclass(frozen=True)
class Budget:
    """A size that a shape must come near.

    Args:
        name: what is measured, for a person.
        wanted: how much of it.
        of: measures a shape; it grows with every size.
        low: the least that counts as near, as a share of ``wanted``.
        high: the most.
    """

    name: str
    wanted: float
    of: Callable[[ModelShape], float]
    low: float = 0.98
    high: float = 1.0

    def has(self, shape: ModelShape) -> bool:
        """Whether a shape is within it."""
        return self.low * self.wanted <= self.of(shape) <= self.high * self.wanted


def by_parameters(source: ModelShape, wanted: float) -> Budget:
    """Within 2% of a number of parameters.

    Raises:
        InputError: the source has no more.
    """
    return _below(source, Budget("parameters", wanted, lambda shape: shape.num_parameters(), high=1.02))


def by_memory(source: ModelShape, wanted: float, *, context: int) -> Budget:
    """At most so many bytes for the weights, and keys and values of one sequence of ``context`` tokens, in bfloat16.

    Raises:
        InputError: the source needs no more.
    """
    return _below(source, Budget("bytes", wanted, lambda shape: serving_bytes(shape, context=context)))


def by_speed(source: ModelShape, ratio: float, *, context: int) -> Budget:
    """As much less arithmetic for a token as should make it ``ratio`` times as fast.

    Raises:
        InputError: ``ratio`` is not above 1.
    """
    if not ratio > 1:
        raise InputError(f"--speed is {ratio:g}x; give more than 1x, as 2x.")
    flops = forward_flops(source, seq_len=context)
    return Budget("FLOP per token", flops / ratio, lambda shape: forward_flops(shape, seq_len=context))


def cache_bytes(shape: ModelShape) -> int:
    """Of keys and values of a token, in bfloat16."""
    return 2 * BYTES * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim


def serving_bytes(shape: ModelShape, *, context: int) -> int:
    """Of weights, and keys and values of a sequence of ``context`` tokens, in bfloat16."""
    return BYTES * shape.num_parameters() + context * cache_bytes(shape)


def read_amount(option: str, text: str, *, suffix: str = "") -> float:
    """A number above 0 with a unit or without, such as ``1.3e9``, ``1.3B`` or, with suffix B, ``4GB``.

    Raises:
        InputError: it is none.
    """
    match = _NUMBER.fullmatch(text.strip())
    unit = match[2].upper() if match else "?"
    if unit and suffix:
        unit = unit.removesuffix(suffix) if unit.endswith(suffix) else "?"
    if match is None or unit not in _UNITS or not 0 < float(match[1]) * _UNITS[unit] < float("inf"):
        examples = {"": "1.3e9 or 1.3B", "B": "4GB", "X": "2x"}[suffix]
        raise InputError(f"{option} is '{text}'; write it as {examples}.")
    return float(match[1]) * _UNITS[unit]


def _below(source: ModelShape, budget: Budget) -> Budget:
    if budget.wanted >= (has := budget.of(source)):
        raise InputError(f"The model has {has:,.0f} {budget.name}; {budget.wanted:,.0f} is not less.")
    return budget
