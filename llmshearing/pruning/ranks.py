"""Sums over ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, distributed


def average_gradients(parameters: Mapping[str, Tensor]) -> None:
    """Average the gradients of ``parameters`` over all ranks, in one reduction; what has none gets zeros."""
    grads = {
        name: tensor.grad if tensor.grad is not None else torch.zeros_like(tensor)
        for name, tensor in parameters.items()
    }
    ranks = distributed.get_world_size() if distributed.is_initialized() else 1
    if ranks > 1:
        flat = torch.cat([grad.flatten() for grad in grads.values()])
        distributed.all_reduce(flat)
        flat /= ranks
        parts = flat.split([grad.numel() for grad in grads.values()])
        grads = {name: part.view_as(grads[name]) for name, part in zip(grads, parts, strict=True)}
    for name, tensor in parameters.items():
        tensor.grad = grads[name]
