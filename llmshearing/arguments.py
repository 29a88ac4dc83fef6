"""Checks of single arguments that a user gives; each error names the argument, the value and what it must be."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

from llmshearing.errors import InputError


def number(name: str, value: Any, rule: str, *, within: Callable[[float], bool]) -> float:
    """A finite number for which ``within`` holds.

    Args:
        name: of the argument.
        value: what was given.
        rule: what it must be, in words.
        within: the same as a condition.

    Raises:
        InputError: it is something else.
    """
    try:
        found = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:  # a whole number beyond all floats
        found = math.nan
    if not math.isfinite(found) or not within(found):
        raise InputError(f"{name} is {value!r}; {rule}.")
    return found


def whole(name: str, value: Any, rule: str, *, least: int) -> int:
    """A whole number of at least ``least``. Arguments and errors as for :func:`number`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise InputError(f"{name} is {value!r}; {rule}.")
    return int(value)
