"""Going on behind an earlier stage: what its ``shearing.json`` says, and whether its order of samples is this one's."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from llmshearing.errors import InputError
from llmshearing.fileio import read_json

log = logging.getLogger(__name__)

ORDER = ("shuffle_seed", "shuffle_block_size", "shards")  # what samples_used counts in, see save_state


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


def check_order(path: str, order: Mapping[str, Any], domains: Iterable[str]) -> None:
    """Check that the samples which an earlier stage used are the first ones of this dataset's order too.

    Args:
        path: the earlier stage's ``shearing.json``.
        order: the entries :data:`ORDER` of this dataset, ``shards`` by domain.
        domains: those with samples used.

    Raises:
        InputError: the seed, the block size or a domain's shards differ.
    """
    theirs = read_json(path).get("order")
    if theirs is None:
        log.warning(
            "start: '%s' is of a version that did not record the order it counts samples in. Make sure that "
            "shuffle_seed, shuffle_block_size and the data are those of pruning, or its samples come again.",
            path,
        )
        return
    for key in ("shuffle_seed", "shuffle_block_size"):
        if theirs[key] != order[key]:
            raise InputError(
                f"{key}: {order[key]!r} is not that of the stage whose samples '{path}' counts, {theirs[key]!r}, so "
                f"they would come again. Set {key} to {theirs[key]!r}, or leave start out."
            )
    for domain in domains:
        if theirs["shards"].get(domain) != order["shards"][domain]:
            raise InputError(
                f"start: the shards of domain '{domain}' are not those whose samples '{path}' counts. Give the data of "
                "that stage as local or remote, or leave the domain out of start."
            )
