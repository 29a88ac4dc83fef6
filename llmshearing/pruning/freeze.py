"""Weights that stand still while units are chosen."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.optim import Optimizer


def drop_gradients(model: nn.Module) -> None:
    """Keep the optimizer from its next step: it skips what has no gradient.

    Unlike ``requires_grad = False`` this is none of DDP's and FSDP's business.
    """
    for parameter in model.parameters():
        parameter.grad = None


def forget_empty_state(optimizers: Iterable[Optimizer]) -> None:
    """Undo what saving and loading do to an optimizer that had not stepped: torch makes a step with gradients of zero.

    Its moments are zero, but it counts, so that the first real step would be another than without them.
    """
    for optimizer in optimizers:
        for parameter, state in list(optimizer.state.items()):
            moments = [value for value in state.values() if isinstance(value, Tensor) and value.dim()]
            if not any(_local(moment).any() for moment in moments):
                del optimizer.state[parameter]


def _local(tensor: Tensor) -> Tensor:
    """The shard of this rank, or the tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
