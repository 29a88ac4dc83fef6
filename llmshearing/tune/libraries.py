"""The libraries that train, imported when they are needed: they take seconds, and are in an extra."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from llmshearing.errors import InputError

NAMES = ("trl", "peft", "datasets")


def check_installed() -> None:
    """Find out in no time whether :func:`libraries` would find them.

    Raises:
        InputError: one is not installed; says how to.
    """
    for name in NAMES:
        if importlib.util.find_spec(name) is None:
            raise _missing(name)


def libraries() -> tuple[ModuleType, ModuleType, ModuleType]:
    """``trl``, ``peft`` and ``datasets``.

    Raises:
        InputError: one is not installed; says how to.
    """
    found = []
    for name in NAMES:
        try:
            found.append(importlib.import_module(name))
        except ImportError as error:
            raise _missing(name) from error
    trl, peft, datasets = found
    return trl, peft, datasets


def _missing(name: str) -> InputError:
    return InputError(f"Tuning needs the package {name}: pip install 'llmshearing[tune]'.")
