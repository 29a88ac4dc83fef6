"""``python -m llmshearing.score MODEL SCORES --data DATA``: what the units of a model are worth, for any target."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmshearing.errors import InputError, cli
from llmshearing.fileio import check_file_can_be_written
from llmshearing.following import say_next

if TYPE_CHECKING:
    from torch import Tensor

    from llmshearing.pruning.scores import Scores

log = logging.getLogger(__name__)

_AT_ONCE = 8


def score_model(
    model_name: str, out: str | Path, *, data: str | Path, num_sequences: int = 32, dtype: str = "float32"
) -> None:
    """Write the scores of a model's units, see :mod:`llmshearing.pruning.scoring`.

    Runs on the GPU if there is one; the model must fit on it.

    Args:
        model_name: Hugging Face folder or hub id, of the LLaMA family.
        out: the safetensors file to write.
        data: folder that ``data_prep/prepare.py`` wrote; its train split, or else its domains, are read.
        num_sequences: how many to read, in equal parts of every domain.
        dtype: of the weights and the computation.

    Raises:
        InputError: the model or the data cannot be read, or they do not fit together; scores that are not finite;
            ``out`` cannot be written.
    """
    import torch  # which takes seconds, as the rest does

    from llmshearing.models.config import read_config
    from llmshearing.models.loading import default_device
    from llmshearing.models.pretrained import load_pretrained

    check_file_can_be_written(out)
    rows = _rows(read_config(model_name), data, num_sequences)
    model: Any = load_pretrained(model_name, dtype=getattr(torch, dtype)).to(default_device()).eval()  # type: ignore[arg-type]
    _score(model, rows).save(out)
    log.info("Scored '%s' on %d sequences: '%s'.", model_name, len(rows), out)


def score_loaded(model: Any, data: str | Path, *, num_sequences: int = 32) -> Scores:
    """The same of a model that is there, in eval mode, without a file."""
    return _score(model, _rows(model.config, data, num_sequences))


def _rows(config: Any, data: str | Path, num_sequences: int) -> Tensor:
    from llmshearing.architecture.shapes import ModelShape
    from llmshearing.data.prepared import rows_in_turns

    if num_sequences < 1:
        raise InputError(f"The number of sequences is {num_sequences}; it must be at least 1.")
    size, longest = ModelShape.from_hf_config(config).vocab_size, config.max_position_embeddings
    return rows_in_turns(data, num_sequences, vocab_size=size, longest=longest)


def _score(model: Any, rows: Tensor) -> Scores:
    from llmshearing.compute import score_flops
    from llmshearing.pruning.scoring import score

    found = score(model, rows.to(model.device).split(math.gcd(len(rows), _AT_ONCE)))
    return replace(found, flops=score_flops(found.source, tokens=rows.numel(), seq_len=rows.shape[1]))


@cli
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and score."""
    parser = argparse.ArgumentParser(prog="python -m llmshearing.score", description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="Hugging Face folder or hub id")
    parser.add_argument("out", metavar="SCORES", help="safetensors file to write")
    parser.add_argument("--data", required=True, help="folder that data_prep/prepare.py wrote")
    parser.add_argument("--sequences", type=int, default=32, help="how many of them to look at (default: 32)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: float32")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    score_model(
        arguments.model,
        arguments.out,
        data=arguments.data,
        num_sequences=arguments.sequences,
        dtype=arguments.dtype,
    )
    say_next(
        "python -m llmshearing.convert shear {model} OUT --scores {out} --target SIZES --fit {data}",
        model=arguments.model,
        out=arguments.out,
        data=arguments.data,
    )


if __name__ == "__main__":
    main()
