"""From where training is to a checkpoint's plain values, and back."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Mapping, Sequence
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
        fingerprint: identifies the sizes of all shards, and the blocks that are shuffled together.
        update_interval: batches in a round.
        global_batch_size: samples in a batch, over all ranks.
        shuffle_seed: seed of all orders.
        shuffle_block_size: samples that are shuffled together.
        sub_streams: how many a domain is cut into, where it can be.
        most_sub_streams: how many each domain can be cut into, (domains,).
        shards: identifies each domain's shards, (domains,).
        first: identifies the settings of the first round by name, ``proportions`` and ``start``.
        unfinished: the rounds that earlier stages did not finish, see ``partial_rounds.py``, in plain types.
    """

    domains: tuple[str, ...]
    fingerprint: str
    update_interval: int
    global_batch_size: int
    shuffle_seed: int
    shuffle_block_size: int
    shards: tuple[str, ...]
    first: Mapping[str, str]
    sub_streams: int = 1
    most_sub_streams: tuple[int, ...] = (1,)
    unfinished: Sequence[Mapping[str, Any]] = ()

    @property
    def round_size(self) -> int:
        """Samples in a round."""
        return self.update_interval * self.global_batch_size

    def splits(self, sub_streams: int) -> list[int]:
        """How many sub-streams each domain has where ``sub_streams`` is set, (domains,)."""
        return [min(sub_streams, most) for most in self.most_sub_streams]


def digest(*parts: object) -> str:
    """Eight characters that tell different ``parts`` of plain values apart."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=4).hexdigest()


def save_state(plan: RoundPlan, sample: int, shape: DataShape) -> dict[str, Any]:
    """The state of a run that has trained on ``sample`` samples, the last of them under ``plan``.

    Returns:
        JSON of some 80 bytes per domain, with the same keys and lengths at any time. (A run behind a stage that did not
        finish its round has some 130 more.)
    """
    state = {
        "round": plan.number,
        "sample": sample,
        "sample_in_round": sample - plan.begin,
        "update_interval": shape.update_interval,
        "global_batch_size": shape.global_batch_size,
        "shuffle_seed": plan.seed,
        "shuffle_block_size": shape.shuffle_block_size,
        "data": shape.fingerprint,
        "shards": list(shape.shards),
        "first": dict(shape.first),
        "domains": list(shape.domains),
        "proportions": list(plan.proportions),
        "samples_used": plan.used_at(sample).tolist(),
        "owed": list(plan.owed),
    }
    # Without these a state is as earlier versions saved it: a sharded checkpoint has to hold all that is asked of it.
    state |= {"sub_streams": shape.sub_streams, "lanes": plan.lanes} if shape.sub_streams > 1 else {}
    return state | ({"unfinished": list(shape.unfinished)} if shape.unfinished else {})


def restore_plan(state: Mapping[str, Any], shape: DataShape) -> RoundPlan:
    """The plan that was in force at a :func:`save_state`.

    Raises:
        InputError: the domains, the data or, within a round, the size of the round differ from the state's.
    """
    if not isinstance(state, Mapping) or "samples_used" not in state:
        raise InputError(
            "The checkpoint's training data was not a DynamicStreamingDataset. Resume with the data loader that it was "
            "saved with, or load its weights only."
        )
    _check_unchanged(state, shape)
    _check_sizes(state, shape)
    if not state.get("owed"):
        log.warning(
            "The checkpoint is of a version that did not carry its rounding from round to round. Its round ends as it "
            "began; what earlier rounds rounded off is not made up for."
        )
    return dataclasses.replace(
        saved_plan(state),
        size=shape.round_size,
        batch_size=shape.global_batch_size,
        sub_streams=max(shape.splits(shape.sub_streams)),
    )


def saved_plan(state: Mapping[str, Any]) -> RoundPlan:
    """The plan that was in force at a :func:`save_state`, of whatever data."""
    size = state["update_interval"] * state["global_batch_size"]
    owed = tuple(state.get("owed", ()))
    if not owed and state["sample_in_round"]:  # of an earlier version
        owed = owed_for(apportion(size, state["proportions"]).tolist(), state["proportions"])
    plan = RoundPlan(
        number=state["round"],
        begin=state["sample"] - state["sample_in_round"],
        size=size,
        proportions=tuple(state["proportions"]),
        used=(0,) * len(state["domains"]),
        seed=state["shuffle_seed"],
        owed=owed,
        batch_size=state["global_batch_size"],
        sub_streams=state.get("lanes", 1),
    )
    # The state counts up to its sample, the plan up to the beginning of the round.
    used = np.asarray(state["samples_used"], np.int64) - plan.used_at(state["sample"])
    return dataclasses.replace(plan, used=tuple(used.tolist()))


def _check_unchanged(state: Mapping[str, Any], shape: DataShape) -> None:
    """Refuse what a run cannot change on its way; entries that an earlier version did not save are not compared."""
    if list(state["domains"]) != list(shape.domains):
        raise InputError(
            f"The checkpoint's domains are {list(state['domains'])}, the dataset's {list(shape.domains)}. Resume with "
            "the same domains in the same order, or begin a new run with start and proportions."
        )
    if state["shuffle_seed"] != shape.shuffle_seed:
        raise InputError(
            f"shuffle_seed: the checkpoint's is {state['shuffle_seed']}, not {shape.shuffle_seed}, and another order "
            f"would repeat samples. Set it to {state['shuffle_seed']}, or begin a new run."
        )
    shards = state.get("shards", shape.shards)
    others = [name for name, ours, theirs in zip(shape.domains, shape.shards, shards, strict=True) if ours != theirs]
    if state["data"] != shape.fingerprint or others:
        raise InputError(
            f"The shards{' of ' + ', '.join(others) if others else ''} are not those of the checkpoint, or "
            f"shuffle_block_size ({shape.shuffle_block_size}) is not, so its samples cannot be found again. Resume "
            "with the same data, or begin a new run with start and proportions."
        )
    split = state.get("sub_streams", 1)  # earlier versions had no more
    if shape.splits(split) != shape.splits(shape.sub_streams):
        raise InputError(
            f"sub_streams: the checkpoint's is {split}, not {shape.sub_streams}, and another order would repeat "
            f"samples. Set sub_streams to {split}, or begin a new run."
        )
    for name, theirs in state.get("first", {}).items():
        if theirs != shape.first[name]:
            raise InputError(
                f"{name} is not what the checkpoint's run began with, and a run that is resumed goes on from the "
                f"checkpoint's own. Set {name} back, or begin a new run with start and proportions."
            )


def _check_sizes(state: Mapping[str, Any], shape: DataShape) -> None:
    """Refuse another size of batch or round within a round, say where one is taken on."""
    size = state["update_interval"] * state["global_batch_size"]
    saved = f"{state['update_interval']} batches of {state['global_batch_size']}"
    if size == shape.round_size and state["global_batch_size"] == shape.global_batch_size:
        return
    if state["sample_in_round"]:
        raise InputError(
            f"The checkpoint stands within a round of {saved} samples, now set to {shape.update_interval} of "
            f"{shape.global_batch_size}. Resume with the same sizes, or from a checkpoint at the end of a round."
        )
    log.warning(
        "Rounds are %d batches of %d samples from here on; the checkpoint's were %s.",
        *(shape.update_interval, shape.global_batch_size, saved),
    )
