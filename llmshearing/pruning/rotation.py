"""Turn a model's residual stream to its principal components, which changes next to nothing of its predictions.

RMSNorm commutes with rotations once its weight has moved into the layers that read it, so any orthogonal matrix may
turn the residual stream of a whole model (Ashkboos et al., 2024, "SliceGPT", section 3). In a trained model every
dimension carries about as much as the next; after the turn the first ones carry most, and pruning the others costs
little. One rotation serves all layers, so the model keeps its architecture.

With untied embeddings this is exact. A tied matrix ``E`` is a hurdle: as the head it should take up the final norm's
weight ``g``, as the embedding it must not. So the stream is first stretched, ``x' = s * x`` with ``s = sqrt(g /
median g)``: the matrix ``E * s`` serves as the embedding, and as the head it brings the missing ``s`` of ``s * s = g
/ median g``. A norm then divides by the RMS of ``s * x`` where the source divided by that of ``x``; its weight makes
up for their mean ratio, and what is left, how the ratio varies from token to token, is the only error. To keep that
small, dimensions that a few tokens blow up and those whose ``g`` is far from the others' stay as they are, not
stretched and not turned.

Letters: d hidden size, V vocabulary, n tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from llmshearing.architecture.axes import HIDDEN
from llmshearing.architecture.families import FAMILIES
from llmshearing.architecture.layouts import FINAL_NORM, rotates
from llmshearing.architecture.shapes import ModelShape, find_module
from llmshearing.errors import InputError

# Of a tied model those dimensions stay that carry so many times their share, as the few "massive" ones of a trained
# model do, and those whose final norm is so many times the median, or the median so many times it.
_MASSIVE, _UNUSUAL = 10.0, 4.0


@dataclass(frozen=True)
class Moments:
    """How the residual stream is spread over what the norms of a model read, each token at RMS one.

    Args:
        total: ``E[x x^T]`` over all norms, (d, d), float64.
        squares: ``E[x * x]`` of each norm by its name, (d,), float64.
    """

    total: Tensor
    squares: Mapping[str, Tensor]


def check_rotates(source: ModelShape) -> None:
    """Refuse a family whose residual stream cannot be turned.

    Raises:
        InputError: names the families that can be.
    """
    if not rotates(source.family.layout):
        able = sorted(name for name, family in FAMILIES.items() if rotates(family.layout))
        raise InputError(
            f"The residual stream of a '{source.model_type}' cannot be turned: norms stand between its layers and the "
            f"stream, or read it with weights of their own. Prune it unturned. Can be turned: {', '.join(able)}."
        )


@torch.no_grad()
def residual_moments(model: nn.Module, batches: Iterable[Tensor], source: ModelShape) -> Moments:
    """The moments of ``model``, a ``transformers`` causal LM, on ``batches`` of token ids, each (batch, length).

    Everything is summed where the model is: per norm and batch one (d, d) product, and nothing goes to the host.
    """
    backbone = cast(Any, model).model
    reading = sorted(module.name for module in source.layer if module.is_hidden_norm)
    norms = {FINAL_NORM.name: backbone.norm}
    for index, layer in enumerate(backbone.layers):
        norms |= {f"model.layers.{index}.{name}": layer.get_submodule(name) for name in reading}
    total: Tensor | None = None
    squares: dict[str, Tensor] = {}
    count = 0

    def watch(name: str) -> Any:
        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            nonlocal total, count
            x = inputs[0].flatten(0, -2).float()  # (n, d)
            x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-12)
            product = (x.T @ x).double()
            total = product if total is None else total.add_(product)
            squares[name] = squares.get(name, 0) + product.diagonal().clone()
            count += len(x) if name == FINAL_NORM.name else 0

        return add

    hooks = [norm.register_forward_pre_hook(watch(name)) for name, norm in norms.items()]
    try:
        for batch in batches:
            model(input_ids=batch, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    assert total is not None
    return Moments(total / (count * len(norms)), {name: square / count for name, square in squares.items()})


def principal_components(second_moment: Tensor) -> Tensor:
    """Orthogonal matrix whose columns are the directions of ``second_moment`` (d, d), the strongest first.

    A direction's sign is such that its largest entry is positive, for the same result everywhere.
    """
    _, directions = torch.linalg.eigh(second_moment)
    directions = directions.flip(-1)
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    return directions * largest.sign()


@dataclass(frozen=True)
class Turn:
    """What becomes of the residual stream: ``x`` (d,) becomes ``rotation.T @ (stretch * x)``.

    Args:
        rotation: orthogonal, (d, d).
        stretch: (d,), all positive; ``None`` for ones.
        growth: by norm, what the stream's RMS is multiplied by on the way; 1 where it has none.
    """

    rotation: Tensor
    stretch: Tensor | None = None
    growth: Mapping[str, float] = field(default_factory=dict)

    def to(self, device: torch.device) -> Turn:
        """The same on another device."""
        stretch = None if self.stretch is None else self.stretch.to(device)
        return Turn(self.rotation.to(device), stretch, self.growth)


def turn_to_principal_components(moments: Moments, tied_norm: Tensor | None = None) -> Turn:
    """The turn that puts the strongest directions of the stream first.

    Args:
        moments: of the model to turn.
        tied_norm: the final norm's weight, (d,), where the embeddings are tied.
    """
    if tied_norm is None:
        return Turn(principal_components(moments.total))
    weight = tied_norm.to(moments.total)
    still = _dimensions_that_stay(moments.total.diagonal(), weight)
    stretch = torch.where(still, 1.0, (weight / weight[~still].median()).clamp(min=0).sqrt())
    growth = {
        name: ((stretch.square() * square).sum() / square.sum()).sqrt().item()
        for name, square in moments.squares.items()
    }
    spread = moments.total * stretch * stretch.unsqueeze(-1)
    apart = still | still.unsqueeze(-1)
    spread = torch.where(apart, spread.diagonal().diag_embed(), spread)
    return Turn(principal_components(spread), stretch, growth)


def _dimensions_that_stay(strength: Tensor, weight: Tensor) -> Tensor:
    """Mask of the dimensions that a tied model keeps as they are, (d,): the massive ones, and unusual final norms."""
    ratio = weight / weight[weight > 0].median()
    return (strength > _MASSIVE * strength.mean()) | (ratio < 1 / _UNUSUAL) | (ratio > _UNUSUAL)


def turn_tensor(key: str, tensor: Tensor, norms: Mapping[str, Tensor], turn: Turn, source: ModelShape) -> Tensor:
    """One tensor of the turned model, in its own dtype.

    Args:
        key: its Hugging Face name.
        tensor: its values before.
        norms: the weights of the model's norms *before* the turn, by Hugging Face name.
        turn: where the residual stream goes.
        source: shape of the model.

    Raises:
        InputError: a tensor that the family does not have.
    """
    found = find_module(key, source)
    if found is None:
        raise InputError(f"Tensor '{key}' is not part of a '{source.model_type}'; what it is, is not known.")
    module, layer = found
    wide, rotation, stretch = tensor.to(turn.rotation.dtype), turn.rotation, turn.stretch
    place = "" if layer is None else f"model.layers.{layer}."
    if module.is_hidden_norm:
        if module.name == FINAL_NORM.name and source.tie_word_embeddings:
            left = wide if stretch is None else wide / stretch.square()
            wide = torch.einsum("ij,i,ij->j", rotation, left, rotation)
        else:
            wide = torch.full_like(wide, _scale(wide))
        wide = wide * turn.growth.get(place + module.name, 1.0)
    elif module.rows == (HIDDEN,):
        if stretch is not None:
            wide = wide * (stretch.unsqueeze(-1) if wide.dim() == 2 else stretch)
        wide = rotation.T @ wide
    elif module.columns == HIDDEN and tensor.dim() == 2:
        if module.reads is not None:
            norm = norms[f"{place}{module.reads}.weight"].to(wide)
            wide = wide * (norm / _scale(norm))
        if stretch is not None:
            wide = wide * stretch if module.reads is None else wide / stretch
        wide = wide @ rotation
    return wide.to(tensor.dtype)


def _scale(norm: Tensor) -> float:
    """What a norm keeps of its weight, the root of the mean square; the rest moves to the matrices that read it.

    A matrix that took all of a small weight would be as small, and Adam's steps, which do not shrink with it, too
    large: 25 times in the first layer of SmolLM2-135M, whose training then breaks down.
    """
    return norm.square().mean().sqrt().item() or 1.0


@torch.no_grad()
def rotate_model(model: nn.Module, turn: Turn, source: ModelShape) -> None:
    """Turn the residual stream of ``model`` in place, one tensor at a time, where each lies.

    Raises:
        InputError: the stream of this family cannot be turned.
    """
    check_rotates(source)
    tensors = dict(model.named_parameters())
    norms = {key: tensor.clone() for key, tensor in tensors.items() if key.endswith("norm.weight")}
    for key, tensor in tensors.items():
        tensor.copy_(turn_tensor(key, tensor, norms, turn.to(tensor.device), source))
