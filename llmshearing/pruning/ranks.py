"""Sums over ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from composer.utils import dist
from torch import Tensor


def average_gradients(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gradients averaged over all ranks, in one reduction; the parameters get them too."""
    grads = {
        name: tensor.grad if tensor.grad is not None else torch.zeros_like(tensor)
        for name, tensor in parameters.items()
    }
    if dist.get_world_size() > 1:
        flat = torch.cat([grad.flatten() for grad in grads.values()])
        dist.all_reduce(flat, reduce_operation="SUM")
        flat /= dist.get_world_size()
        parts = flat.split([grad.numel() for grad in grads.values()])
        grads = {name: part.view_as(grads[name]) for name, part in zip(grads, parts, strict=True)}
    for name, tensor in parameters.items():
        tensor.grad = grads[name]
    return grads
