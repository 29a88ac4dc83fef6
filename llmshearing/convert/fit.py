"""The weights of a sheared model, fitted on prepared text to the activations of its source."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from llmshearing.architecture.config import sheared_config
from llmshearing.data.prepared import in_turns
from llmshearing.errors import InputError
from llmshearing.models.config import one_line
from llmshearing.models.loading import DTYPE, build_on_meta
from llmshearing.pruning.fit import Reconstruction
from llmshearing.pruning.shear import Shears, shear_state_dict
from llmshearing.reference_loss.evaluate import sum_of_losses

log = logging.getLogger(__name__)

_HELD_OUT = 5  # one sequence in so many tells what the fit is worth
_AT_ONCE = 8


@dataclass(frozen=True)
class Fitted:
    """What a fit came to.

    Args:
        tensors: by Hugging Face name, of the target shape, in float32.
        record: for ``shearing.json``: losses in nats per token on sequences that were not fitted on.
    """

    tensors: dict[str, Tensor]
    record: dict[str, Any]


def fit_sheared(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    shears: Shears,
    *,
    data: str | Path,
    num_sequences: int,
) -> Fitted:
    """Shear a model and fit what is left of it, in float32, on the GPU if there is one.

    The fit is taken if it lowers the loss, and left with a warning if it does not.

    Args:
        tensors: the source's by Hugging Face name.
        config: its Hugging Face config.
        shears: what is kept.
        data: what ``data_prep/prepare.py`` wrote; its train split is read, or else its domains.
        num_sequences: how many to fit on, in equal parts of every domain.

    Raises:
        InputError: the data cannot be read or does not fit the model, or has too few tokens; values that are not
            finite.
    """
    made = cast(Any, AutoConfig.for_model(**config))
    made.use_cache = False
    longest, size = made.max_position_embeddings, shears.source.vocab_size
    if num_sequences < 2:
        raise InputError(f"The number of sequences to fit on is {num_sequences}; it must be at least 2.")
    taken = list(in_turns(data, num_sequences + -(-num_sequences // (_HELD_OUT - 1)), vocab_size=size, longest=longest))
    if len({ids.shape[1] for ids in taken}) > 1:
        raise InputError(f"'{data}' holds sequences of several lengths. Prepare every domain with one --seq-len.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    held_out = [ids.to(device) for ids in taken[_HELD_OUT - 1 :: _HELD_OUT]]
    fitted_on = torch.cat([ids for place, ids in enumerate(taken) if place % _HELD_OUT != _HELD_OUT - 1]).to(device)
    if not held_out:
        raise InputError(f"'{data}' holds {len(taken)} sequences; a fit needs at least {_HELD_OUT}.")
    wide = {name: tensor.float() for name, tensor in tensors.items()}
    source = _model(made, wide, device)
    cut = shear_state_dict(wide, shears.masks, shears.source, shears.target)
    small = AutoConfig.for_model(**sheared_config(made.to_dict(), shears.target, shears.layers))
    sheared = _model(small, {name: tensor.clone() for name, tensor in cut.items()}, device)
    losses = {"source": _loss(source, held_out), "before": _loss(sheared, held_out)}
    at_once = math.gcd(len(fitted_on), _AT_ONCE)
    Reconstruction(source, sheared, shears).fit(fitted_on.split(at_once))
    losses["after"] = _loss(sheared, held_out)
    message = "Loss on %d sequences: %.4f nats of the source, %.4f sheared, %.4f fitted on %d others."
    log.info(message, len(held_out), *losses.values(), len(fitted_on))
    if applied := losses["after"] < losses["before"]:
        cut = {name: tensor.cpu() for name, tensor in sheared.named_parameters()}
    else:
        log.warning("The fit does not lower the loss, so it is left: what is written is sheared only.")
    record = {"sequences": len(fitted_on), "tokens": fitted_on.numel(), "losses": losses, "applied": applied}
    return Fitted(cut, record)


def _model(config: Any, tensors: Mapping[str, Tensor], device: torch.device) -> PreTrainedModel:
    try:
        options: dict[str, Any] = {DTYPE: torch.float32}
        model = build_on_meta(config, **options)
    except Exception as error:  # what a value is wrong for decides what it raises
        raise InputError(f"No model can be made of the checkpoint's config: {one_line(error)}") from error
    tied = {"lm_head.weight": tensors["model.embed_tokens.weight"]} if config.tie_word_embeddings else {}
    model.load_state_dict({**tensors, **tied}, assign=True)
    model.tie_weights()
    return cast(Any, model).to(device).eval()


def _loss(model: PreTrainedModel, sequences: list[Tensor]) -> float:
    sums = [sum_of_losses(model, ids) for ids in sequences]
    return sum(total for total, _ in sums) / sum(count for _, count in sums)
