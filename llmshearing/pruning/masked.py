"""Masks on a live ``transformers`` model: the fold of :mod:`llmshearing.pruning.fold` at every forward.

The scale vectors are detached *leaf* tensors beside the model, not parameters of it: optimizers, gradient clipping,
FSDP, strict loading and export never see them. A leaf may be read inside a checkpointed block, which a tensor with a
graph behind it may not under reentrant checkpointing.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmshearing.architecture.axes import Scale
from llmshearing.architecture.layouts import FINAL_NORM
from llmshearing.architecture.modules import Module, NormKind
from llmshearing.architecture.shapes import ModelShape
from llmshearing.errors import InputError
from llmshearing.pruning.fold import Masks, fold, kept_masks, kept_name, scale_vectors, vector_name
from llmshearing.pruning.target import UnitGroup


def _fold_columns(weight: Tensor, columns: Tensor | None) -> Tensor:
    """``weight`` with its columns scaled, in its own dtype: no float32 copy of what FSDP hands over in bfloat16."""
    return weight if columns is None else fold(weight, None, columns.to(weight.dtype))


class FoldedLinear(torch.autograd.Function):
    """``x @ fold(weight, rows, columns).T`` that keeps no folded weight for the backward pass.

    Kept folded weights would outlive FSDP's resharding: one unsharded copy of o_proj and down_proj for every layer.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, rows, columns)
        output = functional.linear(x, _fold_columns(weight, columns).to(x.dtype))
        return output if rows is None else output.mul_(rows.to(x.dtype))  # a smaller tensor to scale than the weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rows, columns = ctx.saved_tensors
        (grad,) = grads
        grad_x = grad_weight = grad_rows = grad_columns = spare = None
        with torch.autocast(x.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                scaled = grad if rows is None else grad * rows.to(grad.dtype)
                folded = _fold_columns(weight, columns).to(grad.dtype)
                grad_x = scaled @ folded
                # Memory that is of no more use; a tensor of the weight's size less.
                spare = folded if folded is not weight and folded.dtype == weight.dtype else None
            if not any(ctx.needs_input_grad[1:]):
                return grad_x, None, None, None
            grad_folded = grad.flatten(0, -2).T @ x.flatten(0, -2)
            if any(ctx.needs_input_grad[2:]):
                product = torch.mul(grad_folded, weight, out=spare)
                if rows is not None and ctx.needs_input_grad[2]:
                    grad_rows = (product.sum(-1) if columns is None else product @ columns.to(product.dtype)).to(rows)
                if columns is not None and ctx.needs_input_grad[3]:
                    grad_columns = (product.sum(0) if rows is None else rows.to(product.dtype) @ product).to(columns)
            if ctx.needs_input_grad[1]:  # last, and in place: one tensor of the weight's size less
                if rows is not None:
                    grad_folded.mul_(rows.unsqueeze(-1))
                if columns is not None:
                    grad_folded.mul_(columns)
                grad_weight = grad_folded.to(weight.dtype)
        return grad_x, grad_weight, grad_rows, grad_columns


class MaskedLinear(nn.Linear):
    """A linear layer whose rows and columns are scaled by masks (o_proj, down_proj)."""

    rows: Tensor | None
    columns: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``."""
        if torch.is_autocast_enabled(input.device.type):
            input = input.to(torch.get_autocast_dtype(input.device.type))
        with torch.autocast(input.device.type, enabled=False):
            output = FoldedLinear.apply(input, self.weight, self.rows, self.columns)
            if self.bias is not None:
                output = output + fold(self.bias, self.rows, None).to(output.dtype)
        return output


class MaskedRMSNorm(nn.Module):
    """An RMSNorm whose weight is scaled by masks and whose mean is taken over the kept entries only.

    Dropped entries of what it reads are zero, or ``kept`` makes them so.
    """

    weight: nn.Parameter
    kind: NormKind
    scale: Tensor | None
    kept: Tensor | None
    dropped_ratio: Tensor  # all entries / kept ones, a scalar on the device: no host synchronisation

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``(..., entries)`` to the same shape, with the dtypes of the family's own norm."""
        x = hidden_states.float()
        if self.kept is not None:
            x = x * self.kept
        variance = x.pow(2).mean(-1, keepdim=True) * self.dropped_ratio
        x = x * torch.rsqrt(variance + getattr(self, self.kind.eps))
        if self.kind.offset:
            return (x * fold(1.0 + self.weight.float(), self.scale, None)).to(hidden_states.dtype)
        if self.kind.wide:
            return (fold(self.weight, self.scale, None) * x).to(hidden_states.dtype)
        return fold(self.weight, self.scale, None).to(self.weight.dtype) * x.to(hidden_states.dtype)


@functools.cache
def masked_embedding(kind: type[nn.Embedding]) -> type[nn.Embedding]:
    """A class of embeddings of ``kind`` whose output is scaled by the hidden masks."""

    class MaskedEmbedding(kind):  # type: ignore[valid-type, misc]
        hidden: Tensor

        def forward(self, input: Tensor) -> Tensor:
            """``(...)`` token ids to ``(..., hidden_size)``."""
            embedded = super().forward(input)
            return embedded * self.hidden.to(embedded.dtype)

    return MaskedEmbedding


class _Kept:
    """Which entries of an axis the masks keep, and in what ratio, on the device."""

    def __init__(self, length: int, device: torch.device) -> None:
        self.entries = torch.ones(length, device=device)
        self.dropped_ratio = torch.ones((), device=device)

    def set(self, mask: Tensor) -> None:
        """Keep the entries whose mask is not zero."""
        self.entries.copy_(mask != 0)
        self.dropped_ratio.copy_(len(mask) / torch.count_nonzero(mask).clamp(min=1))


class MaskedModel:
    """Puts masks on a causal LM in place and passes their gradients back.

    Parameter names and objects stay those of the model. ``leaves`` holds the scale vectors by the names that
    :func:`~llmshearing.pruning.fold.scale_vectors` gives; all ones at first.
    """

    def __init__(self, model: nn.Module, source: ModelShape, groups: Iterable[UnitGroup], device: torch.device) -> None:
        ones: dict[str, Tensor] = {group.dimension: torch.ones(group.shape, device=device) for group in groups}
        self.source = source
        self.leaves = {
            name: vector.detach().clone().requires_grad_() for name, vector in scale_vectors(ones, source).items()
        }
        self._kept = {name: _Kept(len(mask), device) for name, mask in kept_masks(ones, source).items()}
        self._one = torch.ones((), device=device)
        backbone = cast(Any, model).model
        backbone.embed_tokens.register_forward_hook(self._ask_for_gradients)
        for index, layer in enumerate(backbone.layers):
            for module in source.layer:
                self._mask(module, layer.get_submodule(module.name), index)
        self._mask(FINAL_NORM, backbone.norm, None)
        if "hidden" in self.leaves:
            embedding: Any = backbone.embed_tokens
            embedding.__class__ = masked_embedding(type(embedding))  # type: ignore[arg-type]  # a class is hashable
            embedding.hidden = self.leaves["hidden"]

    def _ask_for_gradients(self, _: nn.Module, __: Any, embedded: Tensor) -> None:
        """Ask for gradients of what layers read, with which a reentrantly checkpointed one gives them to its masks."""
        if torch.is_grad_enabled() and any(leaf.requires_grad for leaf in self.leaves.values()):
            embedded.requires_grad_()

    def _leaf(self, scale: Scale | None, layer: int | None) -> Tensor | None:
        return self.leaves.get(vector_name(scale, layer)) if scale else None

    def _mask(self, module: Module, live: nn.Module, layer: int | None) -> None:
        scale = self._leaf(module.scale_rows, layer)
        if module.scale_columns is not None:
            if type(live) is not nn.Linear:
                raise InputError(
                    f"layer {layer}'s {module.name} is a {type(live).__name__}; pruning needs a plain torch.nn.Linear "
                    "there. Prune before adding adapters or quantisation, and merge adapters first."
                )
            live.__class__ = MaskedLinear
            linear = cast(MaskedLinear, live)
            linear.rows, linear.columns = scale, self._leaf(module.scale_columns, layer)
        elif module.is_norm:
            kept = self._kept.get(kept_name(module.rows[0], layer))
            if scale is None and kept is None:
                return
            live.__class__ = MaskedRMSNorm
            masked = cast(MaskedRMSNorm, live)
            masked.kind, masked.scale = self.source.family.norm, scale
            reads_the_stream = module.scale_rows == "hidden"  # whose dropped dimensions are zero
            masked.kept = None if kept is None or reads_the_stream else kept.entries
            masked.dropped_ratio = self._one if kept is None else kept.dropped_ratio

    def assign(self, masks: Masks) -> None:
        """Set the masks of the following forwards and clear the gradients of the last ones."""
        with torch.no_grad():
            for name, vector in scale_vectors(masks, self.source).items():
                self.leaves[name].copy_(vector)
                self.leaves[name].grad = None
            for name, mask in kept_masks(masks, self.source).items():
                self._kept[name].set(mask)

    def fix(self, masks: Masks) -> None:
        """Set the masks for good: backward passes compute no gradients of them any more."""
        self.assign(masks)
        for leaf in self.leaves.values():
            leaf.requires_grad_(False)

    def backward(self, masks: Masks) -> None:
        """Push the gradients that the leaves gathered since :meth:`assign` into what ``masks`` were computed from."""
        vectors = scale_vectors(masks, self.source)
        gathered = [(vector, self.leaves[name].grad) for name, vector in vectors.items()]
        reached = [(vector, grad) for vector, grad in gathered if grad is not None]
        torch.autograd.backward([vector for vector, _ in reached], [grad for _, grad in reached])
