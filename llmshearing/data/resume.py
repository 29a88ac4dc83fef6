"""From where training is to a checkpoint's plain values, and back."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmshearing.data.carry import owed_for
from llmshearing.data.plan import RoundPlan
from llmshearing.data.proportions import apportion
from llmshearing.errors import InputError

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class DataShape:
    """What has to be the same before and after a restart.

    Args:
        domains: in order.
        fingerprint: identifies the shards and the orders drawn over them.
        update_interval: batches in a round.
        global_batch_size: samples in a batch, over all ranks.
    """

    domains: tuple[str, ...]
    fingerprint: str
    update_interval: int
    global_batch_size: int

    @property
    def round_size(self) -> int:
        """Samples in a round."""
        return self.update_interval * self.global_batch_size


def save_state(plan: RoundPlan, sample: int, shape: DataShape) -> dict[str, Any]:
    """The state of a run that has trained on ``sample`` samples, the last of them under ``plan``.

    Returns:
        JSON of some 65 bytes per domain, with the same keys and lengths at any time.
    """
    return {
        "round": plan.number,
        "sample": sample,
        "sample_in_round": sample - plan.begin,
        "update_interval": shape.update_interval,
        "global_batch_size": shape.global_batch_size,
        "shuffle_seed": plan.seed,
        "data": shape.fingerprint,
        "domains": list(shape.domains),
        "proportions": list(plan.proportions),
        "samples_used": plan.used_at(sample).tolist(),
        "owed": list(plan.owed),
    }


def restore_plan(state: Mapping[str, Any], shape: DataShape) -> RoundPlan:
    """The plan that was in force at a :func:`save_state`.

    Raises:
        InputError: the domains, the data or, within a round, the size of the round differ from the state's.
    """
    if "samples_used" not in state:
        raise InputError(
            "The checkpoint's training data was not a DynamicStreamingDataset. Resume with the data loader that it was "
            "saved with, or load its weights only."
        )
    if list(state["domains"]) != list(shape.domains):
        raise InputError(
            f"The checkpoint's domains are {list(state['domains'])}, the dataset's {list(shape.domains)}. Resume with "
            "the same domains in the same order, or begin a new run with start and proportions."
        )
    if state["data"] != shape.fingerprint:
        raise InputError(
            "The shards are not those of the checkpoint, or shuffle_block_size is not, so its samples cannot be found "
            "again. Resume with the same data, or begin a new run with start and proportions."
        )
    size = state["update_interval"] * state["global_batch_size"]
    if state["sample_in_round"] and size != shape.round_size:
        raise InputError(
            f"The checkpoint stands within a round of {state['update_interval']} batches of "
            f"{state['global_batch_size']} samples, now set to {shape.update_interval} of {shape.global_batch_size}. "
            "Resume with the same sizes, or from a checkpoint at the end of a round."
        )
    owed = tuple(state.get("owed", ()))
    if not owed:
        log.warning(
            "The checkpoint is of a version that did not carry its rounding from round to round. Its round ends as it "
            "began; what earlier rounds rounded off is not made up for."
        )
        if state["sample_in_round"]:
            owed = owed_for(apportion(size, state["proportions"]).tolist(), state["proportions"])
    plan = RoundPlan(
        number=state["round"],
        begin=state["sample"] - state["sample_in_round"],
        size=shape.round_size,
        proportions=tuple(state["proportions"]),
        used=(0,) * len(shape.domains),
        seed=state["shuffle_seed"],
        owed=owed,
    )
    # The state counts up to its sample, the plan up to the beginning of the round.
    used = np.asarray(state["samples_used"], np.int64) - plan.used_at(state["sample"])
    return dataclasses.replace(plan, used=tuple(used.tolist()))
