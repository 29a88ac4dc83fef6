"""The weights of a sheared model, fitted on prepared text to the activations of its source, as they are written."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoConfig

from llmshearing.architecture.config import sheared_config
from llmshearing.architecture.layouts import EMBEDDING, LM_HEAD
from llmshearing.compute import fit_flops
from llmshearing.convert.stored import StoredTensor
from llmshearing.convert.weight_files import Entry
from llmshearing.data.prepared import rows_in_turns
from llmshearing.errors import InputError
from llmshearing.models.config import one_line
from llmshearing.models.loading import default_device
from llmshearing.models.streamed import StreamedModel
from llmshearing.pruning.fit import HeldOut, Reconstruction
from llmshearing.pruning.shear import Shears, shear_state_dict
from llmshearing.reference_loss.evaluate import sum_of_losses

log = logging.getLogger(__name__)

_HELD_OUT = 5  # one sequence in so many tells what the fit is worth
_AT_ONCE = 8

Read = Callable[[str], Tensor]


class Fit:
    """A fit of sheared weights, in float32, on the GPU if there is one, that reads weights as it needs them.

    Args:
        source: gives a tensor of the source by its Hugging Face name.
        sheared: gives one of the sheared model.
        config: the source's Hugging Face config.
        shears: what is kept.
        data: what ``data_prep/prepare.py`` wrote; its train split is read, or else its domains.
        num_sequences: how many to fit on, in equal parts of every domain.

    Raises:
        InputError: the data cannot be read or does not fit the model, or has too few tokens.
    """

    def __init__(
        self,
        source: Read,
        sheared: Read,
        config: Mapping[str, Any],
        shears: Shears,
        *,
        data: str | Path,
        num_sequences: int,
    ) -> None:
        large = _config(config)
        small = _config(sheared_config(large.to_dict(), shears.target, shears.layers))
        device = default_device()
        fitted_on, others = rows_to_fit_on(data, num_sequences, shears.source.vocab_size, large.max_position_embeddings)
        at_once = math.gcd(len(fitted_on), len(others), _AT_ONCE)
        self._held_out = HeldOut(others.to(device).split(at_once), sum_of_losses)
        self._num_tokens, self._num_sequences = fitted_on.numel(), len(fitted_on)
        sizes = {"tokens": fitted_on.numel(), "held_out": others.numel(), "seq_len": fitted_on.shape[1]}
        self._flops = fit_flops(shears.source, shears.target, **sizes)
        self._reconstruction = Reconstruction(
            StreamedModel(large, source, device=device), StreamedModel(small, sheared, device=device), shears
        )
        self._tensors = self._reconstruction.fit(fitted_on.to(device).split(at_once), self._held_out)
        self._ready: dict[str, Tensor] = {}

    @staticmethod
    def order(names: Iterable[str]) -> list[str]:
        """Names of tensors in the order in which a fit has them: embeddings, layers, what is behind them."""

        def place(name: str) -> tuple[int, int]:
            parts = name.split(".")
            return (1, int(parts[2])) if parts[1] == "layers" else (0 if parts[1] == "embed_tokens" else 2, 0)

        return sorted(names, key=place)

    def tensor(self, name: str) -> Tensor:
        """A tensor of the fitted model, in float32 on the CPU, once: the fit goes on until it has it.

        Raises:
            InputError: values that are not finite; what reading raises.
        """
        while name not in self._ready:
            made, tensor = next(self._tensors)
            self._ready[made] = tensor.cpu()
        return self._ready.pop(name)

    def finish(self) -> dict[str, Any]:
        """What ``shearing.json`` says of it, all tensors being taken: ``applied`` if it lowers the loss."""
        for _ in self._tensors:
            raise AssertionError("tensors are left")
        losses = self._held_out.losses
        message = "Loss on %d sequences: %.4f nats of the source, %.4f sheared, %.4f fitted on %d others."
        count = sum(len(ids) for ids in self._held_out.batches)
        log.info(message, count, losses["source"], losses["before"], losses["after"], self._num_sequences)
        if not (applied := losses["after"] < losses["before"]):
            log.warning("The fit does not lower the loss, so it is left: what is written is sheared only.")
        return {
            "sequences": self._num_sequences,
            "tokens": self._num_tokens,
            "losses": losses,
            "applied": applied,
            "flops": self._flops,
        }


def open_fit(
    tensors: Mapping[str, StoredTensor],
    sheared: Iterable[Entry],
    config: Mapping[str, Any],
    shears: Shears,
    *,
    data: str | Path,
    num_sequences: int,
) -> Fit:
    """A fit that reads tensors of the source, and of what is ``sheared``, from a checkpoint."""
    entries = {entry.name: entry for entry in sheared}
    return Fit(
        lambda name: tensors[name].read(),
        lambda name: torch.cat(list(entries[name].make())),
        config,
        shears,
        data=data,
        num_sequences=num_sequences,
    )


def fitted_entries(fit: Fit, entries: Sequence[Entry]) -> list[Entry]:
    """What is written in the place of ``entries``, in the order of the fit."""

    def make(entry: Entry) -> list[Tensor]:
        made = fit.tensor(entry.name).to(entry.dtype)
        if not torch.isfinite(made).all():
            raise InputError(f"Fitted weights have values beyond {entry.dtype}. Use bfloat16 or float32.")
        return [made]

    places = {name: place for place, name in enumerate(fit.order(entry.name for entry in entries))}
    return [
        dataclasses.replace(entry, make=functools.partial(make, entry))
        for entry in sorted(entries, key=lambda entry: places[entry.name])
    ]


def fit_state_dict(
    state_dict: Mapping[str, Tensor],
    config: Mapping[str, Any],
    shears: Shears,
    *,
    data: str | Path,
    num_sequences: int = 64,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Shear the tensors of a model and fit them: :func:`~llmshearing.pruning.shear.shear_state_dict` and a fit.

    Args:
        state_dict: tensors by Hugging Face name, of the source's shape, a tied output layer among them or not.
        config: the source's Hugging Face config.
        shears: what is kept.
        data: see :class:`Fit`.
        num_sequences: see :class:`Fit`.

    Returns:
        Tensors of the target shape, fitted if that lowers the loss, in their own dtype; and what ``shearing.json`` says
        of the fit.

    Raises:
        InputError: see :class:`Fit`.
    """
    cut = shear_state_dict(state_dict, shears.masks, shears.source, shears.target)
    fit = Fit(state_dict.__getitem__, cut.__getitem__, config, shears, data=data, num_sequences=num_sequences)
    tied = f"{LM_HEAD.name}.weight" if shears.source.tie_word_embeddings else None  # which a fit does not list
    fitted = {name: fit.tensor(name).to(cut[name].dtype) for name in fit.order(cut.keys() - {tied})}
    if tied in cut:
        fitted[tied] = fitted[f"{EMBEDDING.name}.weight"]
    record = fit.finish()
    return (fitted if record["applied"] else cut), record


def _config(values: Mapping[str, Any]) -> Any:
    try:
        made = cast(Any, AutoConfig.for_model(**values))
    except Exception as error:  # what a value is wrong for decides what it raises
        raise InputError(f"No model can be made of the checkpoint's config: {one_line(error)}") from error
    made.use_cache = False
    return made


def rows_to_fit_on(data: str | Path, number: int, vocab_size: int, longest: int) -> tuple[Tensor, Tensor]:
    """What to fit on, and what to measure by: token ids, (sequences, t)."""
    if number < 2:
        raise InputError(f"The number of sequences to fit on is {number}; it must be at least 2.")
    wanted = number + -(-number // (_HELD_OUT - 1))
    taken = rows_in_turns(data, wanted, vocab_size=vocab_size, longest=longest)
    if len(taken) < _HELD_OUT:
        raise InputError(f"'{data}' holds {len(taken)} sequences; a fit needs at least {_HELD_OUT}.")
    # By lot: every fifth would be all of one domain, if there are five.
    order = torch.randperm(len(taken), generator=torch.Generator().manual_seed(0))
    others, fitted_on = order.tensor_split([len(taken) // _HELD_OUT])
    return taken[fitted_on.sort().values], taken[others.sort().values]
