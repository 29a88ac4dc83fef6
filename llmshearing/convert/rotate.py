"""A Hugging Face model to the same model with its residual stream turned to principal components."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import torch
from transformers import AutoTokenizer

from llmshearing.architecture.shapes import ModelShape
from llmshearing.convert.output import check_output, output_folder
from llmshearing.data.prepared import in_turns
from llmshearing.errors import InputError
from llmshearing.models.config import one_line, read_config
from llmshearing.models.hub import hub_options
from llmshearing.models.loading import default_device, keep_generation_config
from llmshearing.models.pretrained import load_pretrained
from llmshearing.pruning.rotation import check_rotates, residual_moments, rotate_model, turn_to_principal_components
from llmshearing.reference_loss.evaluate import mean_loss

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
        The mean loss on these sequences in nats per token, before and after: the same to rounding; with tied
        embeddings nearly so, see :mod:`llmshearing.pruning.rotation`.

    Raises:
        InputError: the model or the data cannot be read, or they do not fit together; weights or losses that are not
            finite; ``out`` exists or cannot be written.
    """
    if num_sequences < 1:
        raise InputError(f"The number of sequences is {num_sequences}; it must be at least 1.")
    place = check_output(out, overwrite=overwrite, source=model_name)
    config = read_config(model_name)
    shape = ModelShape.from_hf_config(config)
    check_rotates(shape)
    calibration = list(
        in_turns(data, num_sequences, vocab_size=shape.vocab_size, longest=config.max_position_embeddings)
    )
    if not calibration:
        raise InputError(f"'{data}' holds no sequences. Prepare the data again.")
    device = default_device()
    model = load_pretrained(model_name, dtype=dtype).to(device).eval()  # type: ignore[arg-type]
    keep_generation_config(model)
    sequences = [ids.to(device) for ids in calibration]
    before = mean_loss(model, sequences)
    tied_norm = model.model.norm.weight.detach() if shape.tie_word_embeddings else None
    rotate_model(model, turn_to_principal_components(residual_moments(model, sequences, shape), tied_norm), shape)
    after = mean_loss(model, sequences)
    message = "Loss on %d sequences: %.4f nats before, %.4f after turning to principal components."
    log.info(message, len(sequences), before, after)
    if not (math.isfinite(before) and math.isfinite(after)):
        raise InputError(f"The loss of '{model_name}' in {dtype} is not finite, so nothing is written. Use float32.")
    with output_folder(place, overwrite=overwrite) as folder:
        model.save_pretrained(folder)
        _copy_tokenizer(model_name, folder)
    return before, after


def _copy_tokenizer(model_name: str, folder: Path) -> None:
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_name, **hub_options(model_name))
    except Exception as error:  # families differ in how they say that files are missing
        log.warning("'%s' has no tokenizer to copy: %s", model_name, one_line(error))
        return
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # the Rust library raises no OSError where the disk is full
        raise OSError(one_line(error)) from error
