"""A model of as many parameters as another, of which every layer has widths of its own.

That is what structured pruning without a target shape leaves (LLM-Pruner, Ma et al., NeurIPS 2023, prunes groups of
coupled structures wherever they matter least); Sheared LLaMA compares its speed with that of a regular shape. Weights
are random: it is made to be timed.
"""

from __future__ import annotations

import copy
import dataclasses
import random

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from llmshearing.architecture.shapes import ModelShape
from llmshearing.errors import InputError
from llmshearing.models.loading import build_on_meta


def irregular_shapes(shape: ModelShape, *, seed: int = 0) -> list[ModelShape]:
    """A shape for each layer; over all layers, neurons and key-value heads add up to those of ``shape``.

    Layers are paired at random, and one of a pair gets what the other gives up: an odd number of neurons, up to half
    of them, and whole key-value heads with their query heads, up to half of those. Of an odd number of layers one keeps
    its widths, and so do all heads where a layer has a single key-value head.

    Args:
        shape: the regular one.
        seed: of the draw.

    Raises:
        InputError: there is one layer only.
    """
    if shape.num_hidden_layers < 2:
        raise InputError("A model of one layer has no irregular one of as many parameters. Take one with more layers.")
    generator = random.Random(seed)
    order = generator.sample(range(shape.num_hidden_layers), shape.num_hidden_layers)
    shapes = [shape] * shape.num_hidden_layers
    neurons, heads = shape.intermediate_size, shape.num_key_value_heads
    for place in range(0, len(order) - 1, 2):
        first, second = order[place : place + 2]
        moved = 2 * generator.randrange(max(1, neurons // 4)) + 1 if neurons > 1 else 0
        heads_moved = generator.randint(0, heads // 2)
        for layer, sign in ((first, 1), (second, -1)):
            key_value = heads + sign * heads_moved
            shapes[layer] = dataclasses.replace(
                shape,
                intermediate_size=neurons + sign * moved,
                num_key_value_heads=key_value,
                num_attention_heads=key_value * shape.queries_per_group,
            )
    return shapes


def build_irregular(
    config: PretrainedConfig, *, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> PreTrainedModel:
    """A stock model of ``config`` whose layers have the widths of :func:`irregular_shapes`, in eval mode.

    Args:
        config: of a model of a supported family.
        device: where its weights are.
        dtype: of them.
        seed: of widths and weights.

    Raises:
        InputError: the family is not supported, or there is one layer only.
    """
    shapes = irregular_shapes(ModelShape.from_hf_config(config), seed=seed)
    model = build_on_meta(config)
    layers = model.model.layers
    for index, shape in enumerate(shapes):
        own = copy.deepcopy(model.config)
        for name in ("intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"):
            setattr(own, name, getattr(shape, name))
        with torch.device("meta"):
            layers[index] = type(layers[index])(own, index)
    generator = torch.Generator(device).manual_seed(seed)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            filled = torch.ones(parameter.shape, device=device, dtype=dtype)
            if parameter.dim() > 1:
                filled.normal_(std=0.02, generator=generator)
            setattr(module, name, nn.Parameter(filled, requires_grad=False))
    model.tie_weights()
    return model.to(device).eval()  # type: ignore[arg-type]
