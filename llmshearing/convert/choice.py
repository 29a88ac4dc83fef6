"""What a conversion keeps of a model: by the masks of a pruning checkpoint, or by scores for a target."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmshearing.architecture.axes import DIMENSIONS
from llmshearing.architecture.config import check_prunable
from llmshearing.architecture.layouts import EMBEDDING
from llmshearing.architecture.shapes import ModelShape
from llmshearing.convert.checkpoint import Checkpoint
from llmshearing.convert.layout import select, shape_of_config
from llmshearing.errors import InputError
from llmshearing.pruning.scores import NUM_MARKS, Scores
from llmshearing.pruning.shear import Shears
from llmshearing.pruning.state import masks_to_shear
from llmshearing.pruning.target import resolve_target, unit_groups

ALGORITHM = "TargetedPruning"


def by_masks(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Shears:
    """What the masks of a pruning checkpoint keep.

    Raises:
        InputError: it has none, or of another form or shape.
    """
    path = checkpoint.path
    pruning = checkpoint.algorithm(ALGORITHM)
    if pruning is None:
        raise InputError(
            f"'{path}' holds no masks: it is not a pruning checkpoint. Use `export` for a dense model, or give "
            "--scores and --target to shear it."
        )
    try:
        source, target = ModelShape.from_dict(pruning["source"]), ModelShape.from_dict(pruning["target"])
        groups = unit_groups(source, target)
        if resolve_target(source, {name: getattr(target, name) for name in DIMENSIONS}) != target:
            raise TypeError("a target that the source cannot be pruned to")
        masks = masks_to_shear(pruning, groups, path)
    except InputError:
        raise
    except Exception as error:  # what is saved there may be of any type
        raise InputError(f"The masks in '{path}' have a form that this version does not know.") from error
    if shape_of_config(config, path) != source:
        raise InputError(f"The masks in '{path}' are for {source}, its config is of another shape.")
    return Shears(masks, source, target)


def by_scores(
    checkpoint: Checkpoint, config: Mapping[str, Any], scores: str | Path, target: Mapping[str, int]
) -> Shears:
    """What is best by a file of scores.

    Raises:
        InputError: scores of another model; a target that cannot be reached; a checkpoint that has masks of its own.
    """
    if checkpoint.algorithm(ALGORITHM) is not None:
        raise InputError(f"'{checkpoint.path}' has masks of its own. Leave --scores and --target out to shear by them.")
    source, found = shape_of_config(config, checkpoint.path), Scores.load(scores)
    embedding = select(checkpoint.tensors, source, checkpoint.path)[f"{EMBEDDING.name}.weight"]
    rows = next(embedding.parts(NUM_MARKS))
    found.check_model(source, rows, str(checkpoint.path))
    shape, masks = found.masks(target)
    check_prunable(config, shape)
    return Shears(masks, source, shape)
