"""Turn a model's residual stream to its principal components, which changes none of its predictions.

RMSNorm commutes with rotations once its weight has moved into the layers that read it, so any orthogonal matrix may
turn the residual stream of a whole model (Ashkboos et al., 2024, "SliceGPT", section 3). In a trained model every
dimension carries about as much as the next; after the turn the first ones carry most, and pruning the others costs
little. One rotation serves all layers, so the model keeps its architecture.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from llmshearing.errors import InputError
from llmshearing.pruning.fold import rule_for
from llmshearing.shape import ModelShape

# Which norm's weight moves into which layer.
_READS = {
    "self_attn.q_proj": "input_layernorm",
    "self_attn.k_proj": "input_layernorm",
    "self_attn.v_proj": "input_layernorm",
    "mlp.gate_proj": "post_attention_layernorm",
    "mlp.up_proj": "post_attention_layernorm",
}
_FINAL_NORM = "model.norm.weight"


@torch.no_grad()
def residual_second_moment(model: nn.Module, batches: Iterable[Tensor]) -> Tensor:
    """How the residual stream is spread: ``E[x x^T]`` of what all norms of ``model`` read, each ``x`` at RMS one.

    Args:
        model: a ``transformers`` causal LM of the LLaMA family.
        batches: token ids, each (batch, length).

    Returns:
        (hidden_size, hidden_size), float64, on the CPU.
    """
    backbone = cast(Any, model).model
    norms = [norm for layer in backbone.layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
    norms.append(backbone.norm)
    total, count = torch.zeros(()), 0

    def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal total, count
        x = inputs[0].flatten(0, -2).float()
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-12)
        total, count = total + (x.T @ x).double().cpu(), count + len(x)

    hooks = [norm.register_forward_pre_hook(add) for norm in norms]
    try:
        for batch in batches:
            model(input_ids=batch, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return total / count


def principal_components(second_moment: Tensor) -> Tensor:
    """Orthogonal matrix whose columns are the directions of ``second_moment`` (d, d), the strongest first.

    A direction's sign is such that its largest entry is positive, for the same result everywhere.
    """
    _, directions = torch.linalg.eigh(second_moment)
    directions = directions.flip(-1)
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    return directions * largest.sign()


def rotate_state_dict(state_dict: Mapping[str, Tensor], rotation: Tensor, source: ModelShape) -> dict[str, Tensor]:
    """The same model with its residual stream turned: ``x`` becomes ``rotation.T @ x``.

    Exact, but for tied embeddings: one matrix cannot take the final norm's weight ``g`` as the head and be without it
    as the embedding. There the final norm keeps the diagonal of ``rotation.T @ diag(g) @ rotation``, which is exact
    only where all of ``g`` is equal.

    Args:
        state_dict: tensors by Hugging Face name.
        rotation: orthogonal, (hidden_size, hidden_size).
        source: shape of the tensors.

    Returns:
        Tensors of the same names, shapes and dtypes; norms of the residual stream have weights of one.

    Raises:
        InputError: a tensor that a LLaMA-family model does not have.
    """
    rotated = {}
    for key, tensor in state_dict.items():
        found = rule_for(key, tied=source.tie_word_embeddings)
        if found is None:
            raise InputError(f"Tensor '{key}' is not part of a LLaMA-family model; rotation does not know what it is.")
        rule, layer = found
        turn = rotation.to(device=tensor.device)
        wide = tensor.to(turn.dtype)
        name = key.rsplit(".", 1)[0]
        if name.endswith("norm") and rule.rows == "hidden":
            tied_norm = key == _FINAL_NORM and source.tie_word_embeddings
            wide = (turn.T * wide @ turn).diagonal() if tied_norm else torch.ones_like(wide)
        elif rule.rows == "hidden":
            wide = turn.T @ wide
        elif rule.columns == "hidden" and tensor.dim() == 2:
            if layer is not None:
                norm = _READS[name.split(f"layers.{layer}.", 1)[1]]
                wide = wide * state_dict[f"model.layers.{layer}.{norm}.weight"].to(wide)
            elif name == "lm_head" and not source.tie_word_embeddings:
                wide = wide * state_dict[_FINAL_NORM].to(wide)
            wide = wide @ turn
        rotated[key] = wide.to(tensor.dtype)
    return rotated
