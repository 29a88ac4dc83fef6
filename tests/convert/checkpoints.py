"""Small real checkpoints, and the ways to break them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint import save as save_distributed

from llmshearing import TargetedPruning
from tests.training import TARGET, make_trainer

Content = dict[str, Any]
Change = Callable[[Content], Any]


class Payload:
    """An object whose unpickling runs a command: what a malicious checkpoint holds."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def pruned(folder: Path, *, family: str = "llama3", duration: str = "3ba") -> Path:
    """A checkpoint of a short real pruning run."""
    make_trainer([TargetedPruning(TARGET, warmup="1ba")], family=family, folder=folder, duration=duration).fit()
    return folder / "latest-rank0.pt"


def dense(folder: Path, *, family: str = "llama3") -> Path:
    """A checkpoint of a short real run without pruning."""
    make_trainer(family=family, folder=folder, duration="1ba").fit()
    return folder / "latest-rank0.pt"


def changed(checkpoint: Path, path: Path, change: Change) -> Path:
    """A copy of a single-file checkpoint with ``change`` made to its content."""
    content = torch.load(checkpoint, weights_only=False)
    change(content)
    torch.save(content, path)
    return path


def sharded(checkpoint: Path, folder: Path, change: Change = lambda content: None) -> Path:
    """The same content as torch.distributed.checkpoint writes it, from one rank."""
    content = torch.load(checkpoint, weights_only=False)
    change(content)
    save_distributed(content, storage_writer=FileSystemWriter(folder), no_dist=True)
    return folder


def pruning_of(content: Content) -> Content:
    """The state of TargetedPruning in a checkpoint's content."""
    return dict(content["state"]["algorithms"])["TargetedPruning"]
