"""Weights that stand still while units are chosen."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer


class StillWeights:
    """Weights that a batch computes no gradients of, or whose gradients are dropped before the optimizer steps."""

    def __init__(self) -> None:
        self._held: list[nn.Parameter] = []

    def hold(self, model: nn.Module) -> None:
        """Ask for no gradients of weights in the coming backward passes.

        DDP and FSDP1 set up their reductions for the gradients that they saw first, so theirs are computed all the
        same; FSDP2 reduces what is there.
        """
        self.release()
        wrapped = (DistributedDataParallel, FullyShardedDataParallel)
        if not any(isinstance(module, wrapped) for module in model.modules()):
            self._held = [parameter for parameter in model.parameters() if parameter.requires_grad]
            for parameter in self._held:
                parameter.requires_grad_(False)

    def release(self) -> None:
        """Take back :meth:`hold`."""
        for parameter in self._held:
            parameter.requires_grad_(True)
        self._held = []


def drop_gradients(model: nn.Module) -> None:
    """Keep the optimizer from its next step: it skips what has no gradient."""
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
