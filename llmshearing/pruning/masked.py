"""Masks on a live ``transformers`` model: the fold of :mod:`llmshearing.pruning.fold` at every forward.

The scale vectors are detached *leaf* tensors beside the model, not parameters of it: optimizers, gradient clipping,
FSDP, strict loading and export never see them. A leaf may be read inside a checkpointed block, which a tensor with a
graph behind it may not under reentrant checkpointing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmshearing.errors import InputError
from llmshearing.pruning.fold import LAYER_RULES, Masks, fold, scale_vectors
from llmshearing.pruning.target import UnitGroup
from llmshearing.shape import ModelShape


class FoldedLinear(torch.autograd.Function):
    """``x @ fold(weight, rows, columns).T`` that keeps no folded weight for the backward pass.

    Kept folded weights would outlive FSDP's resharding: one unsharded copy of o_proj and down_proj for every layer.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, rows, columns)
        output = functional.linear(x, fold(weight, None, columns).to(x.dtype))
        return output if rows is None else output.mul_(rows.to(x.dtype))  # a smaller tensor to scale than the weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rows, columns = ctx.saved_tensors
        (grad,) = grads
        grad_x = grad_weight = grad_rows = grad_columns = None
        with torch.autocast(x.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                scaled = grad if rows is None else grad * rows.to(grad.dtype)
                grad_x = scaled @ fold(weight, None, columns).to(grad.dtype)
            grad_folded = grad.flatten(0, -2).T @ x.flatten(0, -2)
            if any(ctx.needs_input_grad[2:]):
                product = grad_folded * weight
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


class MaskedEmbedding(nn.Embedding):
    """An embedding whose output is scaled by the hidden masks."""

    hidden: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """``(...)`` token ids to ``(..., hidden_size)``."""
        embedded = super().forward(input)
        return embedded * self.hidden.to(embedded.dtype)


class MaskedRMSNorm(nn.Module):
    """RMSNorm of the kept dimensions only: dropped ones are zero in the input and are not counted in its mean."""

    weight: nn.Parameter
    variance_epsilon: float
    hidden: Tensor
    dropped_ratio: Tensor  # hidden_size / kept dimensions, a scalar on the device: no host synchronisation

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``(..., hidden_size)`` to the same shape and dtype rules as ``LlamaRMSNorm``."""
        x = hidden_states.float()
        variance = x.pow(2).mean(-1, keepdim=True) * self.dropped_ratio
        x = x * torch.rsqrt(variance + self.variance_epsilon)
        return (self.weight * self.hidden).to(self.weight.dtype) * x.to(hidden_states.dtype)


class MaskedModel:
    """Puts masks on a causal LM in place and passes their gradients back.

    Parameter names and objects stay those of the model. ``leaves`` holds the scale vectors by the names that
    :func:`~llmshearing.pruning.fold.scale_vectors` gives; all ones at first.
    """

    def __init__(self, model: nn.Module, source: ModelShape, groups: Iterable[UnitGroup], device: torch.device) -> None:
        ones = {group.dimension: torch.ones(group.shape, device=device) for group in groups}
        self.source = source
        self.leaves = {
            name: vector.detach().clone().requires_grad_() for name, vector in scale_vectors(ones, source).items()
        }
        self._dropped_ratio = torch.ones((), device=device)
        backbone = cast(Any, model).model
        for index, layer in enumerate(backbone.layers):
            for name, rule in LAYER_RULES.items():
                if rule.scale_columns is not None:
                    self._mask_linear(layer.get_submodule(name), f"layer {index}'s {name}", rule.scale_columns, index)
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                self._mask_norm(norm)
        self._mask_norm(backbone.norm)
        if "hidden" in self.leaves:
            backbone.embed_tokens.__class__ = MaskedEmbedding
            backbone.embed_tokens.hidden = self.leaves["hidden"]

    def _mask_linear(self, linear: nn.Module, name: str, columns: str, layer: int) -> None:
        if type(linear) is not nn.Linear:
            raise InputError(
                f"{name} is a {type(linear).__name__}; pruning needs a plain torch.nn.Linear there. "
                "Prune before adding adapters or quantisation, and merge adapters first."
            )
        linear.__class__ = MaskedLinear
        masked = cast(MaskedLinear, linear)
        masked.rows = self.leaves.get(f"residual.{layer}")
        masked.columns = self.leaves.get(f"{columns}.{layer}")

    def _mask_norm(self, norm: nn.Module) -> None:
        if "hidden" in self.leaves:
            norm.__class__ = MaskedRMSNorm
            masked = cast(MaskedRMSNorm, norm)
            masked.hidden, masked.dropped_ratio = self.leaves["hidden"], self._dropped_ratio

    def assign(self, masks: Masks) -> None:
        """Set the masks of the following forwards and clear the gradients of the last ones."""
        with torch.no_grad():
            for name, vector in scale_vectors(masks, self.source).items():
                self.leaves[name].copy_(vector)
                self.leaves[name].grad = None
            if "hidden" in self.leaves:
                kept = torch.count_nonzero(self.leaves["hidden"]).clamp(min=1)
                self._dropped_ratio.copy_(self.source.hidden_size / kept)

    def backward(self, masks: Masks) -> None:
        """Push the gradients that the leaves gathered since :meth:`assign` into what ``masks`` were computed from."""
        vectors = scale_vectors(masks, self.source)
        gathered = [(vector, self.leaves[name].grad) for name, vector in vectors.items()]
        reached = [(vector, grad) for vector, grad in gathered if grad is not None]
        torch.autograd.backward([vector for vector, _ in reached], [grad for _, grad in reached])
