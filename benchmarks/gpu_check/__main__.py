"""``make gpu-check``: does on a GPU hold what holds on the CPU, and what does it cost there?

One CUDA device, within 10 minutes, from the checkout and the installed packages; nothing is downloaded, all weights are
random. Prints a line for each part (how it ended, name, figure, seconds) and writes all numbers to
``runs/gpu_check/result.json``, what parts print into files beside it. Exit code 1 if a part failed. Without a device it
says so, and the exit code is 0.

To work on the check itself: ``--only PART ...`` runs some parts, and ``--device cpu --small`` runs on the CPU, at next
to no size, what can run there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks.gpu_check.part import Setup
from benchmarks.gpu_check.runner import PARTS, run
from benchmarks.quality.sources import ROOT
from llmshearing.errors import InputError, cli
from llmshearing.fileio import remove, write_json

RESULT, MARK = "result.json", ".gpu_check"
PACKAGES = ("llmshearing", "torch", "triton", "transformers", "mosaicml", "mosaicml-streaming", "flash-attn")


@cli
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu_check", help="folder to write")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--small", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("No CUDA device here: nothing was checked.")
        return
    device = _describe(options.device)
    print(f"On {device['name']}, torch {device['torch']}:", flush=True)
    folder = _empty(options.out.resolve())
    found: list[dict[str, object]] = []
    for outcome in run(options.only, Setup(options.device, options.small, folder)):
        print(outcome.line(), flush=True)
        found.append(asdict(outcome))
        write_json(folder / RESULT, {"device": device, "parts": found})
    print(f"All numbers: {folder / RESULT}")
    if any(part["outcome"] == "failed" for part in found):
        raise SystemExit(1)


def _empty(folder: Path) -> Path:
    """Remove what an earlier check left, and nothing else.

    Raises:
        InputError: the folder holds something else.
    """
    if folder.exists() and not (folder / MARK).is_file():
        raise InputError(f"'{folder}' is not of an earlier check. Choose another place, or remove it.")
    remove(folder)
    folder.mkdir(parents=True)
    (folder / MARK).touch()
    return folder


def _describe(device: str) -> dict[str, object]:
    """The card and what runs on it."""
    found: dict[str, object] = {"name": "the CPU"}
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        found = {"name": card.name, "memory": card.total_memory, "capability": f"{card.major}.{card.minor}"}
        found["cuda"] = torch.version.cuda
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


if __name__ == "__main__":
    main()
