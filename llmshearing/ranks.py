"""Processes that a launcher started to work on one command together, such as ``torchrun`` or ``composer -n``."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import distributed


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that a launcher started with this one, each with a GPU of its own; alone, do nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # One rank may find out alone that a large model's tensors are not finite; the others must not wait for ever.
    distributed.init_process_group("nccl" if gpu else "gloo", timeout=timedelta(hours=2))
    if distributed.get_rank() > 0:
        logging.getLogger().setLevel(logging.WARNING)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def world_size() -> int:
    """How many they are."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this one is."""
    return distributed.get_rank() if world_size() > 1 else 0


def shared(value: Any) -> Any:
    """What rank 0 has, on all ranks."""
    if world_size() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def gathered(value: Any) -> list[Any]:
    """What each rank has, in their order, on all of them."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values
