"""What the units of a model are worth: kept in a file, good for any target; :mod:`.scoring` finds it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llmshearing.architecture.axes import DIMENSIONS
from llmshearing.architecture.shapes import ModelShape
from llmshearing.copies import local_copy
from llmshearing.errors import InputError
from llmshearing.fileio import new_file
from llmshearing.pruning.selection import ScoredUnits
from llmshearing.pruning.target import UnitGroup, groups_to_prune, resolve_target, unit_groups
from llmshearing.storage import info

_FORMAT = "1"
_MARK, NUM_MARKS = "embeddings", 256
_NEAR = 0.05  # a share of the marks' size: weights may be of another dtype, but not of another model


@dataclass(frozen=True)
class Scores:
    """The worth of every unit of a model, the higher the better.

    Args:
        source: the model's shape.
        units: by dimension, of the shapes in :class:`~llmshearing.pruning.target.UnitGroup`, float32.
        mark: the model's first embeddings, by which it is known again.
        flops: floating-point operations that they took, about.
    """

    source: ModelShape
    units: Mapping[str, Tensor]
    mark: Tensor
    flops: float = 0.0

    def masks(self, target: Mapping[str, int]) -> tuple[ModelShape, dict[str, Tensor]]:
        """The full target shape, and masks of one for the best units of each group, of zero for the others.

        Raises:
            InputError: a target that cannot be reached.
        """
        shape, groups = groups_to_prune(self.source, target, selection="scores")
        return shape, ScoredUnits(groups, self.units, device=torch.device("cpu")).final()

    def check_model(self, source: ModelShape, embedding: Tensor, name: str) -> None:
        """Refuse another model than that which was scored.

        Args:
            source: the model's shape.
            embedding: its embeddings, or the first rows of them.
            name: of the model, for messages.

        Raises:
            InputError: says in what it differs.
        """
        if source != self.source:
            raise InputError(f"The scores are of a model of {self.source}, '{name}' has {source}.")
        own = mark_of(embedding)
        if own.shape != self.mark.shape or (own - self.mark).abs().max() > _NEAR * self.mark.abs().max():
            raise InputError(
                f"The scores are of another model than '{name}': the embeddings differ, as they also do after "
                "`convert rotate` or training. Score this one."
            )

    def save(self, path: str | Path) -> None:
        """Write the file in one step."""
        metadata = {"format": _FORMAT, "source": json.dumps(self.source.to_dict()), "flops": repr(self.flops)}
        tensors = {_MARK: self.mark, **{name: score.cpu().contiguous() for name, score in self.units.items()}}
        with new_file(path) as file:
            file.write(safetensors.torch.save(tensors, metadata))

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Read the file.

        Raises:
            InputError: there is none, or it is not one of scores.
        """
        if info(path) is None:
            raise InputError(f"There is no file '{path}'. `python -m llmshearing.score` writes one.")
        try:
            with local_copy(path) as copy, safe_open(copy, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            source = ModelShape.from_dict(json.loads(metadata["source"]))
            mark = tensors.pop(_MARK)
            flops = float(metadata.get("flops", "0"))  # earlier versions did not say
            shapes = {group.dimension: group.shape for group in all_groups(source)}
            if metadata["format"] != _FORMAT or {name: tuple(score.shape) for name, score in tensors.items()} != shapes:
                raise ValueError("another form")
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise InputError(f"'{path}' is not a file of scores as `python -m llmshearing.score` writes it.") from error
        return cls(source, tensors, mark, flops)


def all_groups(source: ModelShape) -> list[UnitGroup]:
    """Groups of every dimension that has more than one unit."""
    return unit_groups(source, resolve_target(source, dict.fromkeys(DIMENSIONS, 1)))


def mark_of(embedding: Tensor) -> Tensor:
    """The first values of the embeddings, float32, from the first token on that has any: padding may be all zero.

    The first ``NUM_MARKS`` rows are looked at.
    """
    rows = embedding[:NUM_MARKS].reshape(-1, embedding.shape[-1])
    start = int(rows.any(-1).int().argmax())
    return rows[start:].flatten()[:NUM_MARKS].float().cpu()
