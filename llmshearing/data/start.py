"""Going on behind an earlier stage: what its ``shearing.json`` says, and whether its order of samples is this one's."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from llmshearing.data.partial_rounds import Unfinished, from_plain, of_plan, still_needed, to_plain
from llmshearing.data.resume import DataShape, saved_plan
from llmshearing.errors import InputError
from llmshearing.fileio import read_json

log = logging.getLogger(__name__)

_SAVED = ("shuffle_seed", "shuffle_block_size", "shards")  # which states of earlier versions lack


def order_of(state: Mapping[str, Any]) -> dict[str, Any] | None:
    """What samples_used counts in, as ``shearing.json`` has it; ``None`` of a state from before it was recorded.

    Args:
        state: see :func:`~llmshearing.data.resume.save_state`.
    """
    if not all(entry in state for entry in _SAVED):
        return None
    domains: list[str] = state["domains"]
    plan, sample = saved_plan(state), state["sample"]
    order = {
        "shuffle_seed": state["shuffle_seed"],
        "shuffle_block_size": state["shuffle_block_size"],
        "sub_streams": state.get("sub_streams", 1),
        "shards": dict(zip(domains, state["shards"], strict=True)),
    }
    used = dict(zip(domains, plan.used_at(sample).tolist(), strict=True))
    rounds = from_plain(state.get("unfinished", []))
    if plan.lanes > 1 and plan.begin < sample < plan.end:
        rounds.append(of_plan(plan, sample, domains))
    return order | {"unfinished": to_plain(still_needed(rounds, used))}


def from_shearing(path: str, entry: str) -> Any:
    """The ``entry`` by domain of a ``shearing.json``.

    Raises:
        InputError: it is missing.
    """
    record = read_json(path)
    value = record.get(entry) if isinstance(record, dict) else None
    if value is None:
        raise InputError(
            f"'{path}' has no {entry}: no run with a DynamicStreamingDataset came before. Give proportions as "
            "{domain: share}, and leave start out."
        )
    return value


def unfinished_rounds(path: str, domains: Collection[str]) -> list[Unfinished]:
    """The rounds that the stages before a ``shearing.json`` did not finish, oldest first.

    Args:
        path: the file.
        domains: those with samples used.

    Raises:
        InputError: they are not what ``convert shear`` writes.
    """
    try:
        rounds = from_plain((read_json(path).get("order") or {}).get("unfinished", []))
    except (AttributeError, TypeError) as error:
        raise InputError(
            f"start: '{path}' has order.unfinished in a form that this version does not know ({error}). Shear the "
            "checkpoint again."
        ) from error
    return [{domain: part for domain, part in parts.items() if domain in domains} for parts in rounds]


def check_order(path: str, shape: DataShape, domains: Collection[str]) -> None:
    """Check that the samples which an earlier stage used are the first ones of this dataset's order too.

    Args:
        path: the earlier stage's ``shearing.json``.
        shape: of this dataset.
        domains: those with samples used.

    Raises:
        InputError: the seed, the block size, the sub-streams or a domain's shards differ.
    """
    theirs = read_json(path).get("order")
    if theirs is None:
        log.warning(
            "start: '%s' is of a version that did not record the order it counts samples in. Make sure that "
            "shuffle_seed, shuffle_block_size and the data are those of pruning, or its samples come again.",
            path,
        )
        theirs = {"shuffle_seed": shape.shuffle_seed, "shuffle_block_size": shape.shuffle_block_size}
    for key in ("shuffle_seed", "shuffle_block_size"):
        if theirs[key] != (ours := getattr(shape, key)):
            raise _another(path, key, theirs[key], ours)
    split = theirs.get("sub_streams", 1)  # earlier versions had no more
    for domain, digest, most in zip(shape.domains, shape.shards, shape.most_sub_streams, strict=True):
        if domain not in domains:
            continue
        if "shards" in theirs and theirs["shards"].get(domain) != digest:
            raise InputError(
                f"start: the shards of domain '{domain}' are not those whose samples '{path}' counts. Give the data of "
                "that stage as local or remote, or leave the domain out of start."
            )
        if min(split, most) != min(shape.sub_streams, most):
            raise _another(path, "sub_streams", split, shape.sub_streams)


def _another(path: str, key: str, theirs: Any, ours: Any) -> InputError:
    return InputError(
        f"{key}: {ours!r} is not that of the stage whose samples '{path}' counts, {theirs!r}, so they would come "
        f"again. Set {key} to {theirs!r}, or leave start out."
    )
