"""Weights of a LLaMA-family model, loaded strictly."""

from __future__ import annotations

import logging
import pickle

import torch
import transformers

from llmshearing.errors import InputError
from llmshearing.models.config import one_line, read_config
from llmshearing.models.loading import load_reporting

log = logging.getLogger(__name__)


def load_pretrained(
    path: str, *, attn_implementation: str = "sdpa", dtype: torch.dtype = torch.float32
) -> transformers.PreTrainedModel:
    """Load a model of the LLaMA family strictly.

    Raises:
        InputError: no such model, another family, weights that miss or do not fit a parameter, or that are not finite.
    """
    read_config(path)
    try:
        model, info = load_reporting(
            path,
            dtype=dtype,
            attn_implementation=attn_implementation,
            weights_only=True,  # of .bin files, which are pickles
            ignore_mismatched_sizes=True,  # to name them all, below
        )
    except Exception as error:  # a damaged index or file may raise anything
        raise InputError(f"The weights in '{path}' cannot be loaded: {_reason(error)}") from error
    lacking, foreign = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    differing = sorted(map(str, info["mismatched_keys"]))
    total = sum(1 for _ in model.parameters())  # tied ones count once
    count = f"Loaded {total - len(lacking) - len(differing)} of {total} tensors from '{path}'"
    for problem, names in (
        ("does not have", lacking),
        ("has in another shape than its config says", differing),
        ("has besides those of its config", foreign),
    ):
        if names:
            raise InputError(f"{count}. It is refused for {len(names)} that it {problem}: {', '.join(names[:5])}.")
    for name, parameter in model.named_parameters():
        if not is_finite(parameter):
            raise InputError(f"'{name}' in '{path}' holds NaN or infinity. Take another checkpoint of this model.")
    log.info("%s.", count)
    return model


def _reason(error: BaseException) -> str:
    """What really went wrong: transformers reports a refused or damaged pickle as a missing file."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, pickle.UnpicklingError):
            return "a .bin file is damaged, or holds objects that could run code when read. Use safetensors."
        cause = cause.__cause__ or cause.__context__
    return one_line(error)


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity: one pass, and no copy."""
    # The extremes of a tensor with NaN are NaN.
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor.detach()))).all()) if tensor.numel() else True
