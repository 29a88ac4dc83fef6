"""Per-domain loss of a Hugging Face causal LM on the eval split that ``data_prep/prepare.py`` wrote."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from tqdm import tqdm
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from llmshearing.data.prepared import batches, open_split
from llmshearing.errors import InputError
from llmshearing.models.hub import hub_options
from llmshearing.models.loading import default_device, default_dtype, load_reporting
from llmshearing.reference_loss.fit import UNIT


@torch.inference_mode()
def sum_of_losses(model: PreTrainedModel, input_ids: torch.Tensor) -> tuple[float, int]:
    """Summed next-token cross-entropy in nats over (batch, length) token ids, and how many tokens were predicted.

    The cross-entropy is taken in float32 one sequence at a time: with a large vocabulary, float32 logits of a whole
    batch would need more memory than the model.
    """
    logits = model(input_ids=input_ids, use_cache=False).logits
    total = sum(
        functional.cross_entropy(row[:-1].float(), ids[1:], reduction="sum").item()
        for row, ids in zip(logits, input_ids, strict=True)
    )
    return total, input_ids[:, 1:].numel()


def mean_loss(model: PreTrainedModel, sequences: Iterable[torch.Tensor]) -> float:
    """Over batches of token ids, in nats per predicted token."""
    sums = [sum_of_losses(model, ids) for ids in sequences]
    return sum(total for total, _ in sums) / sum(count for _, count in sums)


@contextmanager
def _loading(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever its files make transformers and safetensors stumble over
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"Cannot load '{name}' as a Hugging Face causal language model: {reason}") from error


def causal_config(name: str) -> PretrainedConfig:
    """The config of a causal LM of any family.

    Raises:
        InputError: there is none that can be read.
    """
    with _loading(name):
        return AutoConfig.from_pretrained(name, trust_remote_code=False, **hub_options(name))


def load_model(name: str, config: PretrainedConfig, *, dtype: str | None) -> PreTrainedModel:
    """Load a causal LM from a folder or the hub, in eval mode, on the GPU if there is one.

    Its weights are of ``dtype``: bfloat16 on a GPU and float32 on a CPU unless given.

    Raises:
        InputError: ``name`` cannot be loaded as one, lacks a tensor, or has one with NaN or infinity.
    """
    device = default_device()
    dtype = default_dtype(dtype)
    with _loading(name):
        model, report = load_reporting(name, dtype=getattr(torch, dtype), config=config, trust_remote_code=False)
    if missing := sorted(report["missing_keys"]):  # transformers has given them random values
        raise InputError(f"'{name}' lacks {len(missing)} tensors, such as '{missing[0]}'. Export or fetch it again.")
    for tensor, values in model.named_parameters():
        if not torch.isfinite(values).all():
            raise InputError(
                f"The tensor '{tensor}' of '{name}' is not finite in {dtype}. "
                "Try --dtype float32, or take another checkpoint."
            )
    return model.to(device).eval()  # type: ignore[arg-type]


def evaluate(
    model_name: str,
    data: str | Path,
    *,
    batch_size: int = 8,
    dtype: str | None = None,
    cache: str | Path | None = None,
) -> dict[str, Any]:
    """Measure a model's loss per domain: the exact mean over all predicted tokens of the eval split.

    Runs on the GPU if there is one; the model must fit on it.

    Args:
        model_name: Hugging Face folder or hub id.
        data: folder that ``data_prep/prepare.py`` wrote, or its ``eval`` folder, or the URL of a copy of it.
        batch_size: sequences per forward pass.
        dtype: of the model's weights and activations; bfloat16 on a GPU and float32 on a CPU unless given.
        cache: folder that data is fetched to; needed for a URL.

    Returns:
        The reference-loss JSON, with the number of predicted tokens per domain under ``tokens``.

    Raises:
        InputError: the model or the data cannot be read, they do not fit together, or a loss is not finite.
    """
    if batch_size < 1:
        raise InputError(f"--batch-size must be at least 1, not {batch_size}.")
    whole_config = causal_config(model_name)
    config = whole_config.get_text_config()  # of a model that also reads pictures, say
    domains = open_split(data, "eval", cache=cache, vocab_size=config.vocab_size)
    for domain, dataset in domains.items():  # before the weights are read
        check_length(config, dataset.seq_len, domain)
    model = load_model(model_name, whole_config, dtype=dtype)
    device, dtype = model.device, str(model.dtype).removeprefix("torch.")
    sums, tokens = dict.fromkeys(domains, 0.0), dict.fromkeys(domains, 0)
    with tqdm(total=sum(map(len, domains.values())), unit="seq", desc="eval") as progress:
        for domain, dataset in domains.items():
            progress.set_description(f"eval {domain}")
            for input_ids in batches(dataset, batch_size):
                check_length(config, input_ids.shape[1], domain)
                try:
                    batch_sum, batch_tokens = sum_of_losses(model, input_ids.to(device))
                except torch.OutOfMemoryError as error:
                    raise InputError(
                        f"The memory of {device} is full with --batch-size {batch_size}: lower it."
                    ) from error
                sums[domain] += batch_sum
                tokens[domain] += batch_tokens
                progress.update(len(input_ids))
                if not tokens[domain] or not math.isfinite(batch_sum):
                    raise InputError(
                        f"The loss of '{model_name}' on domain '{domain}' is not finite ({batch_sum} nats over "
                        f"{batch_tokens} tokens in {dtype}). Try --dtype float32, and data of more than one token."
                    )
    return {
        "unit": UNIT,
        "model": model_name,
        "num_parameters": model.num_parameters(),
        "losses": {domain: sums[domain] / tokens[domain] for domain in domains},
        "tokens": tokens,
        "data": str(data),
        "dtype": dtype,
    }


def check_length(config: PretrainedConfig, length: int | None, domain: str) -> None:
    """Refuse a domain whose sequences are longer than the model takes; both may be unknown.

    Raises:
        InputError: names the domain.
    """
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and length is not None and length > longest:
        raise InputError(
            f"Domain '{domain}' holds sequences of {length} tokens, but the model takes at most {longest}. "
            f"Prepare the data with --seq-len {longest}."
        )
