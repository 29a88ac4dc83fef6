"""Checks of single arguments that a user gives; each error names the argument, the value and what it must be."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

from llmshearing.errors import InputError


def is_whole(value: Any) -> bool:
    """Whether ``value`` is a whole number, and no boolean."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def finite(value: Any) -> float:
    """``value`` as a float; NaN for all that is no finite number, a whole one beyond all floats too."""
    try:
        found = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return math.nan
    return found if math.isfinite(found) else math.nan


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
    found = finite(value)
    if math.isnan(found) or not within(found):
        raise InputError(f"{name} is {value!r}; {rule}.")
    return found


def whole(name: str, value: Any, rule: str, *, least: int) -> int:
    """A whole number of at least ``least``. Arguments and errors as for :func:`number`."""
    if not is_whole(value) or value < least:
        raise InputError(f"{name} is {value!r}; {rule}.")
    return int(value)
