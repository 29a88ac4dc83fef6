"""Parts that compare numbers: the GPU's with the CPU's, masked with sheared models, kernels with each other."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from benchmarks.gpu_check.models import HALF, build, difference, families, logits_of, tiny_config, tokens
from benchmarks.gpu_check.part import Found, Setup, SkippedError, within
from llmshearing.architecture.config import sheared_config
from llmshearing.pruning.functional import Pruning, apply_targeted_pruning
from llmshearing.pruning.shear import Shears, shear_state_dict

CPU = torch.device("cpu")
LENGTH = 128
# Float32 sums in another order; tests hold masked and sheared models to 1e-5 on the CPU.
FLOAT32 = 1e-4
# Bfloat16 may be so much further from float32 than the CPU's bfloat16, or another kernel's, is.
ROUNDING = 2.0


def logits_fp32(setup: Setup) -> Found:
    """Every family's logits in float32 on the device are those of the CPU."""
    torch.set_float32_matmul_precision("highest")
    found = {}
    for family in families(setup.small):
        config = tiny_config(family)
        model, ids = build(config, CPU), tokens(config, 2, LENGTH)
        found[family] = difference(logits_of(_moved(copy.deepcopy(model), setup), ids), logits_of(model, ids))
    return _worst("families, largest relative difference", found, FLOAT32)


def logits_bf16(setup: Setup) -> Found:
    """In bfloat16 they are about as far from float32 as the CPU's are."""
    torch.set_float32_matmul_precision("highest")
    found = {}
    for family in families(setup.small):
        config = tiny_config(family)
        model, ids = build(config, CPU), tokens(config, 2, LENGTH)
        exact = logits_of(model, ids)
        theirs = difference(logits_of(model, ids, autocast=True), exact)
        found[family] = difference(logits_of(_moved(model, setup), ids, autocast=True), exact) / theirs
    return _worst("families, at most this times the CPU's rounding:", found, ROUNDING)


def masked_is_sheared(setup: Setup) -> Found:
    """Masks learned for some steps on the device, then the masked against the sheared model there."""
    torch.set_float32_matmul_precision("highest")
    found = {}
    for family in families(setup.small):
        config = tiny_config(family)
        model, ids = build(config, setup.place), tokens(config, 2, LENGTH)
        pruning = _learn(model, ids.to(setup.place))
        found[family] = difference(logits_of(model, ids), logits_of(_sheared(model, pruning), ids))
    return _worst("families, largest relative difference", found, FLOAT32)


def flash_attention_2(setup: Setup) -> Found:
    """Logits and the masks' gradients with flash-attn, as near to float32 as with torch's own attention."""
    if not setup.on_gpu:
        raise SkippedError("needs a GPU")
    if not is_flash_attn_2_available():
        raise SkippedError("flash-attn is not installed")
    config = tiny_config("llama")
    ids = tokens(config, 2, LENGTH)
    results = {}
    for attention, autocast in (("eager", False), ("sdpa", True), ("flash_attention_2", True)):
        model = build(config, setup.place, attention=attention)
        pruning = apply_targeted_pruning(model, HALF)
        pruning.draw(0)
        logits = logits_of(model, ids, autocast=autocast)
        _loss(model, ids.to(setup.place), autocast=autocast).backward()
        grads = torch.cat([leaf.grad.flatten() for leaf in pruning.model.leaves.values() if leaf.grad is not None])
        results[attention] = (logits, grads.cpu())
    ratios = {}
    for number, what in enumerate(("logits", "mask gradients")):
        exact, own, flash = (results[name][number] for name in ("eager", "sdpa", "flash_attention_2"))
        ratios[what] = difference(flash, exact) / difference(own, exact)
    return _worst("of logits and gradients, at most this times the rounding of sdpa:", ratios, ROUNDING)


def _moved(model: PreTrainedModel, setup: Setup) -> PreTrainedModel:
    return cast(PreTrainedModel, cast(Any, model).to(setup.place))


def _loss(model: PreTrainedModel, ids: torch.Tensor, *, autocast: bool = False) -> torch.Tensor:
    with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=autocast):
        return model(input_ids=ids, labels=ids).loss


def _learn(model: PreTrainedModel, ids: torch.Tensor, *, steps: int = 4) -> Pruning:
    """Masks on ``model`` that have been learned a little; those of evaluation after the last batch are on it."""
    pruning = apply_targeted_pruning(model, HALF, warmup_steps=steps)
    model.train()
    for step in range(steps):
        pruning.draw(step)
        _loss(model, ids).backward()
        pruning.learn(step, finished=step == steps - 1)
    return pruning


def _sheared(model: PreTrainedModel, pruning: Pruning) -> PreTrainedModel:
    masks, source, target = pruning.masks.final(), pruning.source, pruning.target
    config = sheared_config(model.config.to_dict(), target, Shears(masks, source, target).layers)
    small = build(AutoConfig.for_model(**config), next(model.parameters()).device)
    small.load_state_dict(shear_state_dict(model.state_dict(), masks, source, target), strict=True)
    return small


def _worst(what: str, found: dict[str, float], bound: float) -> Found:
    name, worst = max(found.items(), key=lambda item: item[1])
    return Found(f"{len(found)} {within(what, worst, bound)} ({name})", {"by": found, "bound": bound})
