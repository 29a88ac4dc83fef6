"""What test_teacher does on every rank: ``composer -n 2 -m tests.teacher_run FOLDER``.

Writes ``FOLDER/rank<r>.json``: the memory this rank took to have the model in ``FOLDER/large`` sharded, how far what
models in ``FOLDER`` predict is from what they do when they are read whole, and what is said of ``FOLDER/broken``.
"""

from __future__ import annotations

import gc
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from composer.utils import dist, get_device

from llmshearing.errors import InputError
from llmshearing.teacher import Teacher, load_teacher
from tests.models import token_ids


def megabytes(what: str) -> float:
    """Resident memory of this process, now (VmRSS) or at its peak (VmHWM)."""
    found = re.search(what + r":\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def sharded(folder: Path) -> Teacher:
    """Read by one rank."""
    teacher = Teacher(load_teacher(str(folder), torch.float32, on_each_rank=False), top_k=None, temperature=1.0)
    teacher.place(cast(Any, SimpleNamespace(fsdp_config={}, device=get_device("cpu"))))
    return teacher


def main(folder: str) -> None:
    """Measure, compare and write."""
    dist.initialize_dist(get_device("cpu"))
    names = ("llama3", "gemma3", "gemma3-tied", "granite-tied")
    difference = dict.fromkeys(names, 0.0)
    for name in names:  # first: what libraries load on first use is not the large model's
        read = Teacher(load_teacher(f"{folder}/{name}", torch.float32), top_k=None, temperature=1.0)
        with torch.no_grad():
            ours, whole = (teacher(input_ids=token_ids())[0] for teacher in (sharded(Path(folder) / name), read))
        difference[name] = (ours - whole).abs().max().item()
    gc.collect()
    before = megabytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that from here on
    teacher = sharded(Path(folder) / "large")
    size = sum(parameter.numel() for parameter in teacher.parameters()) * 4 / 2**20
    result = {"megabytes": size, "peak": megabytes("VmHWM") - before, "difference": difference}
    try:
        load_teacher(f"{folder}/broken", torch.float32, on_each_rank=False)
    except InputError as error:
        result["refused"] = str(error)
    (Path(folder) / f"rank{dist.get_global_rank()}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
