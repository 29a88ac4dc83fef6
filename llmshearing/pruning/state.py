"""What checkpoints hold of pruning, read back: for runs that go on and for shearing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from llmshearing.errors import InputError
from llmshearing.pruning.chooser import log_ties
from llmshearing.pruning.hard_concrete import deterministic
from llmshearing.pruning.target import UnitGroup


def current(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a :class:`~llmshearing.TargetedPruning` in today's form.

    Version 0.1 kept ``log_alpha`` for every selection, and made it plus and minus infinity for a choice.
    """
    if "decided" in state["masks"]:
        return dict(state)
    log_alpha: dict[str, Tensor] = state["masks"]["log_alpha"]
    decided = all(bool(torch.isinf(value).all()) for value in log_alpha.values())
    masks = {**state["masks"], "decided": decided, "chosen": {name: a > 0 for name, a in log_alpha.items()}}
    if "importance" in state:
        masks["scores"] = state["importance"]
    return {**state, "masks": masks}


def masks_to_shear(state: Mapping[str, Any], groups: Iterable[UnitGroup], path: Any) -> dict[str, Tensor]:
    """The masks that a checkpoint's model is sheared by; warns of units that are cut off by their index alone.

    Args:
        state: of a :class:`~llmshearing.TargetedPruning`.
        groups: what is pruned.
        path: of the checkpoint, for messages.

    Returns:
        By dimension; groups that the state does not have are left out.

    Raises:
        InputError: the state is from a search, or from gathering importance.
    """
    state = current(state)
    masks = state["masks"]
    if masks["decided"]:
        return {group.dimension: masks["chosen"][group.dimension].float() for group in groups}
    search = (state.get("settings") or {}).get("search")
    if search is not None or state.get("selection", "learned") != "learned":
        raise InputError(
            f"'{path}' is from before its units were chosen{f' (search: {search})' if search else ''}. "
            "Go on training, and take a checkpoint of after that."
        )
    found: dict[str, Tensor] = {}
    for group in groups:
        if group.dimension in masks["log_alpha"]:
            log_alpha = masks["log_alpha"][group.dimension]
            log_ties(group, log_alpha)
            found[group.dimension] = deterministic(log_alpha, group.num_kept)
    return found
