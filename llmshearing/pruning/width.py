"""Keep a learning rate right for a model that has become narrower, without a change of what it computes.

Adam moves every weight by about the learning rate, so what a matrix gives moves with the number of its inputs, and the
rate that suits a matrix goes with one over that number (muP: Yang et al., 2022, "Tensor Programs V", table 3). What
reads a stream of d' dimensions instead of d wants d / d' times the source's rate. It has that, at one rate for the
whole model, if the norm it reads is multiplied by d / d' and the matrix divided by it: the same function, in which a
step counts for more.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from llmshearing.architecture.modules import Module


@torch.no_grad()
def hand_to_norms(model: nn.Module, modules: Iterable[Module], factor: float, *, offset: float) -> None:
    """Multiply norms of the residual stream by ``factor`` and divide by it what reads them, in place.

    Args:
        model: holds the modules by their names: a decoder layer, or the whole model.
        modules: of the table; those that read no norm stay as they are.
        factor: above 0.
        offset: what the family's norms add to their weights.
    """
    readers = [module for module in modules if module.reads is not None]
    for module in readers:
        model.get_parameter(f"{module.name}.weight").div_(factor)
    for norm in {module.reads for module in readers}:
        weight: Tensor = model.get_parameter(f"{norm}.weight")
        weight.add_(offset).mul_(factor).sub_(offset)
