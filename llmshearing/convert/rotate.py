"""A Hugging Face model to the same model with its residual stream turned to principal components."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel

from llmshearing.convert.output import output_folder
from llmshearing.data.tokens import TokenDecoder
from llmshearing.errors import InputError
from llmshearing.pruning.rotation import principal_components, residual_second_moment, rotate_state_dict
from llmshearing.reference_loss.evaluate import batches, find_domains, load_model, open_shards, sum_of_losses
from llmshearing.shape import ModelShape

log = logging.getLogger(__name__)


def rotate(
    model_name: str,
    out: str | Path,
    *,
    data: str | Path,
    num_sequences: int = 128,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
) -> tuple[float, float]:
    """Write a model with its residual stream turned to the principal components that it has on ``data``.

    Runs on the GPU if there is one; the model must fit on it.

    Args:
        model_name: Hugging Face folder or hub id, of the LLaMA family.
        out: the folder to create.
        data: folder that ``data_prep/prepare.py`` wrote; its train split, or else its domains, are read.
        num_sequences: how many to read, in equal parts of every domain.
        dtype: of the weights written, and of the computation.
        overwrite: replace an existing ``out``.

    Returns:
        The mean loss on these sequences in nats per token, before and after: the same to rounding, unless the model
        has tied embeddings, see :func:`~llmshearing.pruning.rotation.rotate_state_dict`.

    Raises:
        InputError: the model or the data cannot be read; ``out`` exists or cannot be written.
    """
    if num_sequences < 1:
        raise InputError(f"The number of sequences is {num_sequences}; it must be at least 1.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(model_name, dtype=dtype, device=device)
    shape = ModelShape.from_hf_config(model.config)
    sequences = [ids.to(device) for ids in _calibration(data, num_sequences, model.config.vocab_size)]
    before = _mean_loss(model, sequences)
    rotation = principal_components(residual_second_moment(model, sequences))
    with torch.no_grad():
        model.load_state_dict(rotate_state_dict(model.state_dict(), rotation, shape))
    after = _mean_loss(model, sequences)
    message = "Loss on %d sequences: %.4f nats before, %.4f after turning to principal components."
    log.info(message, len(sequences), before, after)
    with output_folder(out, overwrite=overwrite) as folder:
        model.save_pretrained(folder)
        try:
            AutoTokenizer.from_pretrained(model_name).save_pretrained(folder)
        except (OSError, ValueError, TypeError) as error:  # TypeError: how some families say that files are missing
            log.warning("'%s' has no tokenizer to copy: %s", model_name, error)
    return before, after


def _calibration(data: str | Path, num_sequences: int, vocab_size: int) -> Iterator[torch.Tensor]:
    """Sequences of every domain in turn, one at a time, (1, length)."""
    root = Path(data)
    domains = find_domains(root / "train" if (root / "train").is_dir() else root)
    decode = TokenDecoder(vocab_size=vocab_size)
    each = -(-num_sequences // len(domains))
    streams = [
        itertools.islice(batches(open_shards(name, folder), decode, name, 1), each) for name, folder in domains.items()
    ]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*streams))
    yield from itertools.islice((ids for ids in turns if ids is not None), num_sequences)


def _mean_loss(model: PreTrainedModel, sequences: list[torch.Tensor]) -> float:
    sums = [sum_of_losses(model, ids) for ids in sequences]
    return sum(total for total, _ in sums) / sum(count for _, count in sums)
