"""Per-domain loss of a Hugging Face causal LM on the eval split that ``data_prep/prepare.py`` wrote."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from tqdm import tqdm
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from llmshearing.data.domain import DomainDataset
from llmshearing.data.prepared import batches, open_split
from llmshearing.errors import InputError
from llmshearing.models.hub import hub_options
from llmshearing.models.loading import default_device, default_dtype, load_reporting
from llmshearing.ranks import gathered, rank, shared, world_size
from llmshearing.reference_loss.finished import Finished, digest_of_data, digest_of_model
from llmshearing.reference_loss.fit import UNIT
from llmshearing.reference_loss.placement import Placement
from llmshearing.storage import Place


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
        if "device disk is invalid" in str(error):  # what comes of a layout with everything on disk
            raise InputError(
                f"Nothing of '{name}' fits into the memory that --max-memory leaves it. Allow more."
            ) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"Cannot load '{name}' as a Hugging Face causal language model: {reason}") from error


def causal_config(name: str) -> PretrainedConfig:
    """The config of a causal LM of any family.

    Raises:
        InputError: there is none that can be read.
    """
    with _loading(name):
        return AutoConfig.from_pretrained(name, trust_remote_code=False, **hub_options(name))


def load_model(
    name: str, config: PretrainedConfig, *, dtype: str | None, placement: Placement | None = None
) -> PreTrainedModel:
    """Load a causal LM from a folder or the hub, in eval mode, on the GPU if there is one or as ``placement`` says.

    Its weights are of ``dtype``: bfloat16 on a GPU and float32 on a CPU unless given.

    Raises:
        InputError: ``name`` cannot be loaded as one or does not fit, lacks a tensor, or has one with NaN or infinity
            (of those that are in a memory; what waits on disk is seen in the losses).
    """
    device = default_device()
    dtype = default_dtype(dtype)
    options: dict[str, Any] = placement.options() if placement is not None else {}
    options |= {"config": config, "trust_remote_code": False}
    with _loading(name):
        model, report = load_reporting(name, dtype=getattr(torch, dtype), **options)
    if missing := sorted(report["missing_keys"]):  # transformers has given them random values
        raise InputError(f"'{name}' lacks {len(missing)} tensors, such as '{missing[0]}'. Export or fetch it again.")
    for tensor, values in model.named_parameters():
        if not values.is_meta and not torch.isfinite(values).all():
            raise InputError(
                f"The tensor '{tensor}' of '{name}' is not finite in {dtype}. "
                "Try --dtype float32, or take another checkpoint."
            )
    if placement is None:
        try:
            model.to(device)  # type: ignore[arg-type]
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"'{name}' does not fit on {device} in {dtype}. Where a command has it, --device-map auto spreads it."
            ) from error
    return model.eval()


def evaluate(
    model_name: str,
    data: str | Path,
    *,
    batch_size: int = 8,
    dtype: str | None = None,
    cache: str | Path | None = None,
    placement: Placement | None = None,
    out: Place | None = None,
) -> dict[str, Any]:
    """Measure a model's loss per domain: the exact mean over all predicted tokens of the eval split.

    Runs on the GPU if there is one, where the model must fit unless ``placement`` spreads it. With a process group,
    every rank holds the model and takes a share of the batches; all ranks must call this, and get the same, which is
    what one process gets.

    Args:
        model_name: Hugging Face folder or hub id.
        data: folder that ``data_prep/prepare.py`` wrote, or its ``eval`` folder, or the URL of a copy of it.
        batch_size: sequences per forward pass.
        dtype: of the model's weights and activations; bfloat16 on a GPU and float32 on a CPU unless given.
        cache: folder that data is fetched to; needed for a URL.
        placement: how the model is laid out on more than one device.
        out: where the result will be: until then, finished domains are kept beside it, and taken from there.

    Returns:
        The reference-loss JSON, with the number of predicted tokens per domain under ``tokens``, and a digest of its
        data under ``digests``.

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
    digests = {domain: digest_of_data(dataset) for domain, dataset in domains.items()}
    about = {
        "model": digest_of_model(model_name, whole_config),
        "data": digests,
        "dtype": default_dtype(dtype),
        "batch_size": batch_size,
    }
    finished = Finished(out if rank() == 0 else None, about)
    done = shared(finished.domains)
    model = load_model(model_name, whole_config, dtype=dtype, placement=placement)
    total = sum(len(dataset) for domain, dataset in domains.items() if domain not in done)
    with tqdm(total=total, unit="seq", desc="eval", disable=rank() > 0) as progress:
        for domain, dataset in domains.items():
            if domain not in done:
                progress.set_description(f"eval {domain}")
                finished.add(domain, *_domain_loss(model, model_name, domain, dataset, batch_size, progress))
    sums = done | finished.domains
    return {
        "unit": UNIT,
        "model": model_name,
        "num_parameters": model.num_parameters(),
        "losses": {domain: sums[domain]["nats"] / sums[domain]["tokens"] for domain in domains},
        "tokens": {domain: sums[domain]["tokens"] for domain in domains},
        "data": str(data),
        "digests": digests,
        "dtype": about["dtype"],
    }


def _domain_loss(
    model: PreTrainedModel, name: str, domain: str, dataset: DomainDataset, batch_size: int, progress: Any
) -> tuple[float, int]:
    """Nats and predicted tokens of a domain; each rank takes every so-manieth batch, and sums are in one order."""
    device = default_device()
    own: list[tuple[int, float, int]] = []
    numbered = enumerate(batches(dataset, batch_size))
    for number, input_ids in itertools.islice(numbered, rank(), None, world_size()):
        check_length(model.config.get_text_config(), input_ids.shape[1], domain)
        try:
            own.append((number, *sum_of_losses(model, input_ids.to(device))))
        except torch.OutOfMemoryError as error:
            raise InputError(f"The memory of {device} is full with --batch-size {batch_size}: lower it.") from error
        progress.update(min(len(input_ids) * world_size(), progress.total - progress.n))
        if not math.isfinite(own[-1][1]):
            break
    nats, tokens = 0.0, 0
    for _, batch_nats, batch_tokens in sorted(itertools.chain.from_iterable(gathered(own))):
        nats, tokens = nats + batch_nats, tokens + batch_tokens
        if not tokens or not math.isfinite(batch_nats):
            raise InputError(
                f"The loss of '{name}' on domain '{domain}' is not finite ({batch_nats} nats over {batch_tokens} "
                f"tokens in {str(model.dtype).removeprefix('torch.')}). Try --dtype float32, and data of more than one "
                "token."
            )
    return nats, tokens


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
