"""What a part of the check is given, and how it says what it found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch


@dataclass(frozen=True)
class Setup:
    """What all parts are given.

    Args:
        device: ``cuda`` or ``cpu``.
        small: whether models are of next to no size and steps are few.
        folder: for data and runs, which later parts may use.
    """

    device: str
    small: bool
    folder: Path

    @property
    def on_gpu(self) -> bool:
        """Whether the device is one."""
        return self.device == "cuda"

    @property
    def place(self) -> torch.device:
        """The device as torch has it."""
        return torch.device(self.device)


@dataclass(frozen=True)
class Found:
    """What a part found.

    Args:
        figure: for people, in a few words.
        values: for the JSON.
    """

    figure: str
    values: Mapping[str, object] = field(default_factory=dict)


class SkippedError(Exception):
    """What a part needs is not there; says what."""


class FailedError(Exception):
    """What a part found is not as it should be; says what."""


def within(what: str, value: float, bound: float) -> str:
    """The figure, ``what`` and ``value``.

    Raises:
        FailedError: it is above ``bound``, or no number.
    """
    if not value <= bound:
        raise FailedError(f"{what} {value:.3g}, which should be at most {bound:.3g}")
    return f"{what} {value:.2g}"
