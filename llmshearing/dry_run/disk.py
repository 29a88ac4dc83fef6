"""How much a run keeps on the disk of a node, downloads and uploads: arithmetic on sizes, for planning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from streaming.base.util import bytes_to_int

from llmshearing.data.cache import DataBytes
from llmshearing.storage import is_remote

#: Of a parameter in a checkpoint: its value and Adam's two moments, in float32.
PER_PARAMETER = 12
#: Of metrics.jsonl, for each batch: losses, speeds and shares of a few domains. tests/test_dry_run_disk.py measures it.
PER_BATCH = 1500


@dataclass(frozen=True)
class Disk:
    """Bytes of one node, the one of rank 0, which has most."""

    data: int
    cache: int
    checkpoints: int
    records: int
    temporary: int
    download: int
    store: int

    @property
    def total(self) -> int:
        """Of all that lies on its disk, as if all peaks fell together."""
        return self.data + self.cache + self.checkpoints + self.records + self.temporary


def disk(
    recipe: Mapping[str, Any],
    *,
    parameters: int,
    batches: float,
    saves: float,
    train: DataBytes,
    evaluation: DataBytes,
    num_nodes: int,
) -> Disk:
    """What a node needs.

    Args:
        recipe: complete.
        parameters: of the model that trains.
        batches: of the run.
        saves: checkpoints that the run writes.
        train: of the training data that one node reads.
        evaluation: of all evaluation data.
        num_nodes: among which a sharded checkpoint is divided.
    """
    limit = (recipe["train_loader"].get("dataset") or {}).get("cache_limit")
    # Where nothing is cached the data may not have been opened, and the limit not been checked.
    cached = min(train.cached, bytes_to_int(limit)) if train.cached and limit is not None else train.cached
    whole = PER_PARAMETER * parameters
    sharded = (recipe["fsdp_config"] or {}).get("state_dict_type", "sharded") == "sharded"
    checkpoint = whole // num_nodes if recipe["fsdp_config"] is not None and sharded else whole
    keep = recipe["save_num_checkpoints_to_keep"]
    written = max(1, round(saves))
    kept = written if keep < 0 else min(written, keep + 1)  # the one before goes when the next is whole
    remote = is_remote(recipe["save_folder"])
    loaded = whole if recipe["load_path"] is not None and is_remote(recipe["load_path"]) else 0
    resumed = whole if remote and recipe["autoresume"] else 0
    return Disk(
        data=train.here + evaluation.here,
        cache=cached + evaluation.cached,
        checkpoints=checkpoint * (min(written, 2) if remote else kept),
        records=round(PER_BATCH * batches),
        temporary=max(loaded, resumed) + (checkpoint if remote else 0),  # one waits for its upload
        download=train.fetched + evaluation.fetched + max(loaded, resumed),
        store=whole * kept if remote else 0,
    )
