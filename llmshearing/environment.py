"""What a run ran on: versions and hardware, kept beside its metrics."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from llmshearing.fileio import write_json
from llmshearing.report.records import ENVIRONMENTS, read_environments

_PACKAGES = ("llmshearing", "torch", "mosaicml", "mosaicml-streaming", "transformers", "flash-attn")


def versions() -> dict[str, str]:
    """Of the packages that compute, those that are installed."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # flash-attn is an extra
            continue
    return found


def environment(world_size: int) -> dict[str, Any]:
    """Versions of what computes, and the devices of this process' host; says nothing about who runs it or where."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    return {"python": platform.python_version(), **versions(), "device": device, "processes": world_size}


def record(folder: str | Path, world_size: int) -> None:
    """Add this process' environment to those of the run in ``folder``, unless the last one is the same.

    Raises:
        InputError: what is there cannot be read.
    """
    path = Path(folder) / ENVIRONMENTS
    known = read_environments(path) if path.is_file() else []
    if (current := environment(world_size)) not in known[-1:]:
        write_json(path, [*known, current])
