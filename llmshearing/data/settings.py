"""Checks of single settings: each names the key, the value and what it should be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llmshearing.arguments import finite, is_whole
from llmshearing.errors import InputError


def whole(key: str, value: Any, *, least: int = 0) -> None:
    """Check that ``value`` is a whole number of at least ``least``.

    Raises:
        InputError: it is not.
    """
    if not is_whole(value) or value < least:
        raise InputError(f"{key}: {value!r} is not a whole number of at least {least}. Set it to one.")


def number(key: str, value: Any, *, least: float = 0.0, most: float = math.inf, above: bool = False) -> None:
    """Check that ``value`` is a finite number from ``least`` (with ``above``: without it) to ``most``.

    Raises:
        InputError: it is not.
    """
    found = finite(value)
    if not least <= found <= most or (above and found == least):
        span = "" if least == -math.inf else f" {'above' if above else 'of at least'} {least:g}"
        span += f" and at most {most:g}" if most < math.inf else ""
        raise InputError(f"{key}: {value!r} is not a finite number{span}. Set it to one.")


def flag(key: str, value: Any) -> None:
    """Check that ``value`` is true or false.

    Raises:
        InputError: it is not.
    """
    if not isinstance(value, bool):
        raise InputError(f"{key}: {value!r} is neither true nor false. Set it to one of them.")


def by_domain(key: str, value: Any, example: str) -> None:
    """Check that ``value`` is a mapping whose keys are names of domains.

    Raises:
        InputError: it is not.
    """
    if not isinstance(value, Mapping) or not all(isinstance(name, str) and name for name in value):
        raise InputError(f"{key}: {value!r} is not a mapping of domains. Write it as {example}.")
