"""The hard-concrete distribution of Louizos et al. (2018), "Learning Sparse Neural Networks through L0
Regularization", as Sheared LLaMA (section 2.1) uses it.

A mask z in [0, 1] per unit is a stretched, clamped binary-concrete variable with one parameter, ``log_alpha``.
Every function takes ``log_alpha`` of any leading shape; the last dimension is the units of one group.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TEMPERATURE = 2 / 3
STRETCH = (-0.1, 1.1)
EPSILON = 1e-6
# log_alpha is kept where the keep probability stays away from 0 and 1, so that no unit is decided for good.
LOG_ALPHA_MIN = math.log(1e-2)
LOG_ALPHA_MAX = math.log(1e2)
# What keep_probability makes of these two.
MIN_KEEP_PROBABILITY, MAX_KEEP_PROBABILITY = (
    1 / (1 + (-STRETCH[0] / STRETCH[1]) ** TEMPERATURE * math.exp(-log_alpha))
    for log_alpha in (LOG_ALPHA_MIN, LOG_ALPHA_MAX)
)
# Of the original: the factor that makes the mode-like soft mask below match the mean of z (Louizos' code, 0.8).
_DETERMINISTIC_SCALE = 0.8


def sample(log_alpha: Tensor, u: Tensor) -> Tensor:
    """Draw masks z by the reparameterisation trick.

    Args:
        log_alpha: parameters, shape ``(..., units)``.
        u: uniform noise in (0, 1), broadcastable to ``log_alpha``.

    Returns:
        z in [0, 1], differentiable in ``log_alpha``; the gradient is zero where z is clamped.
    """
    u = u.clamp(EPSILON, 1 - EPSILON)
    s = torch.sigmoid((torch.log(u) - torch.log(1 - u) + log_alpha) / TEMPERATURE)
    low, high = STRETCH
    return (s * (high - low) + low).clamp(0, 1)


def keep_probability(log_alpha: Tensor) -> Tensor:
    """P(z > 0) of each unit, clamped to [EPSILON, 1 - EPSILON]; its sum is the expected size of the group."""
    low, high = STRETCH
    return torch.sigmoid(log_alpha - TEMPERATURE * math.log(-low / high)).clamp(EPSILON, 1 - EPSILON)


def deterministic(log_alpha: Tensor, num_kept: int | Tensor) -> Tensor:
    """The masks of evaluation and of the final model: the ``num_kept`` best units keep a soft mask, the rest get 0.

    Args:
        log_alpha: parameters, shape ``(..., units)``.
        num_kept: units to keep per group, one number or a tensor of shape ``(...)``.

    Returns:
        z of the shape of ``log_alpha`` with exactly ``num_kept`` non-zero entries in each group. Equal scores are
        decided by index, the lower one stays, so that every device and process agrees.
    """
    soft = torch.sigmoid(log_alpha / TEMPERATURE * _DETERMINISTIC_SCALE)
    rank = log_alpha.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    kept = torch.as_tensor(num_kept, device=log_alpha.device)
    return torch.where(rank < kept.unsqueeze(-1), soft, torch.zeros_like(soft))


def ties(scores: Tensor, num_kept: int) -> Tensor:
    """How many units of each group have the score through which the cut between kept and dropped ones goes.

    Args:
        scores: shape ``(..., units)``.
        num_kept: units to keep per group, fewer than there are.

    Returns:
        Shape ``(...)``; 0 where the last kept and the first dropped unit differ.
    """
    ordered = scores.sort(dim=-1, descending=True).values
    last, first = ordered[..., num_kept - 1], ordered[..., num_kept]
    return torch.where(last == first, (scores == last.unsqueeze(-1)).sum(-1), 0)
