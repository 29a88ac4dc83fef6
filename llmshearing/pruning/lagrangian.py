"""The constraint that drives the expected size of every unit group to its target (Sheared LLaMA, section 2.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llmshearing.pruning.hard_concrete import keep_probability
from llmshearing.pruning.target import UnitGroup

COMPATIBILITIES = ("paper", "upstream")


@dataclass
class Multipliers:
    """The Lagrange multipliers of one dimension: linear ``lam`` (lambda) and quadratic ``phi``.

    Shape ``group.shape[:-1]`` under ``compat='paper'``: every group has its own pair, so every layer meets its own
    target. Under ``'upstream'`` the layers of a dimension share one pair, shape ``()``.
    """

    lam: Tensor
    phi: Tensor

    @classmethod
    def zeros(cls, group: UnitGroup, *, compat: str, device: torch.device | str = "cpu") -> Multipliers:
        """Multipliers before the first step."""
        shape = group.shape[:-1] if compat == "paper" else ()
        return cls(*(torch.zeros(shape, device=device, requires_grad=True) for _ in range(2)))


def target_fraction(group: UnitGroup, step: int, *, warmup_steps: int) -> float:
    """Fraction of its units that a group should keep at ``step``: from 1 down to the target, linearly."""
    progress = min(1.0, step / warmup_steps) if warmup_steps else 1.0
    return 1 - progress * (1 - group.num_kept / group.num_units)


def constraint(log_alpha: Tensor, multipliers: Multipliers, fraction: float, *, compat: str) -> Tensor:
    """The Lagrangian's term for one dimension.

    With ``e`` the fraction of a group's units that is too much, ``(expected - target) / units``:
    ``sum over groups of lam * e + phi * e**2``. The paper writes the same in units instead of fractions; measured in
    fractions one learning rate fits a group of 2 heads and one of 11,008 neurons. ``compat='upstream'`` takes the
    mean over groups of a shared pair, and multiplies ``lam`` with the *sparsity* excess, whose sign is opposite.

    Args:
        log_alpha: shape ``(..., units)``.
        multipliers: see :class:`Multipliers`.
        fraction: the target of this step, from :func:`target_fraction`.

    Returns:
        A scalar; the masks descend on it while the multipliers ascend.
    """
    excess = keep_probability(log_alpha).mean(dim=-1) - fraction
    if compat == "upstream":
        return (-multipliers.lam * excess + multipliers.phi * excess**2).mean()
    return (multipliers.lam * excess + multipliers.phi * excess**2).sum()
