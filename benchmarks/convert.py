"""``python -m benchmarks.convert [--scale 1b|7b] [--folder F]``: what shearing a large checkpoint costs.

Builds a random pruning checkpoint, which takes as much memory as it has bytes. Then takes turns copying it with ``cp``
and shearing it, each in a process of its own and with the checkpoint in the page cache; prints seconds, their ratio to
those of ``cp``, and the largest resident set. Whatever ends it, its files go; they need 2.3 times the checkpoint.

    scale  source                                         target                 checkpoint
    1b     1.345 B parameters, d2048 L24 H16 I5504        d1024 L12 H8 I2816     float32, 5.4 GB
    7b     Llama-2-7B                                     2.7 B                  bfloat16, 13.5 GB
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Nothing heavy is imported here: a process started from this one would inherit its resident set as its own largest.

ROUNDS = 3
DIMENSIONS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
SCALES: dict[str, dict[str, Any]] = {
    "1b": {"source": (2048, 24, 16, 5504), "target": (1024, 12, 8, 2816), "dtype": "float32", "gb": 5.4},
    "7b": {"source": (4096, 32, 32, 11008), "target": (2560, 32, 20, 6912), "dtype": "bfloat16", "gb": 13.5},
}


def build(path: Path, scale: str) -> None:
    """Write a checkpoint as Composer would, with random weights and random masks."""
    import torch
    from transformers import LlamaConfig

    from llmshearing.architecture.shapes import ModelShape, parameter_shapes
    from llmshearing.pruning.learned import LearnedMasks
    from llmshearing.pruning.target import resolve_target, unit_groups

    sizes = SCALES[scale]
    source_sizes, target_sizes = (dict(zip(DIMENSIONS, sizes[role], strict=True)) for role in ("source", "target"))
    config = LlamaConfig(vocab_size=32000, **source_sizes)
    source = ModelShape.from_hf_config(config)
    target = resolve_target(source, target_sizes)
    generator = torch.Generator().manual_seed(0)
    masks = LearnedMasks(
        unit_groups(source, target),
        lr=1.0,
        betas=(0.9, 0.95),
        warmup_steps=0,
        compat="paper",
        seed=0,
        device=torch.device("cpu"),
    )
    for log_alpha in masks.log_alpha.values():
        log_alpha.data.normal_(generator=generator)
    dtype = getattr(torch, sizes["dtype"])
    model = {
        f"model.{name}": torch.empty(shape, dtype=dtype).normal_(0, 0.02, generator=generator)
        for name, shape in parameter_shapes(source).items()
    }
    pruning = {"source": source.to_dict(), "target": target.to_dict(), "compat": "paper", "masks": masks.state_dict()}
    saved_config = {"file_extension": ".json", "content": config.to_diff_dict()}
    state = {
        "model": model,
        "algorithms": [("TargetedPruning", pruning)],
        "integrations": {"huggingface": {"model": {"config": saved_config}, "tokenizer": {}}},
    }
    torch.save({"state": state, "rng": []}, path)


def measure(command: list[str]) -> tuple[float, float, float]:
    """Seconds, seconds of processor time, and largest resident set in GB, of a command."""
    begin = time.perf_counter()
    process = subprocess.Popen(command)
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:  # stopped: a child that goes on would write into a folder that is being removed
        process.kill()
        process.wait()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed.")
    return time.perf_counter() - begin, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9


def compare(folder: Path, scale: str) -> None:
    """Build, measure, print."""
    checkpoint, copy, out = folder / "checkpoint.pt", folder / "copy.pt", folder / "sheared"
    python = [sys.executable, "-m"]
    measure([*python, "benchmarks.convert", "--scale", scale, "--build", str(checkpoint)])
    commands = {
        "cp": (["cp", str(checkpoint), str(copy)], copy),
        "shear": ([*python, "llmshearing.convert", "shear", str(checkpoint), str(out)], out),
    }
    measured: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, (command, made) in commands.items():
            with checkpoint.open("rb", buffering=0) as file:  # into the page cache
                while file.read(1 << 26):
                    pass
            measured[name].append(measure(command))
            if made.is_dir():
                written = sum(file.stat().st_size for file in made.iterdir())
                shutil.rmtree(made)
            else:
                made.unlink()
    read = checkpoint.stat().st_size
    print(f"\n{scale}: {read / 1e9:.2f} GB to {written / 1e9:.2f} GB, median of {ROUNDS}, warm cache")
    print(f"{'':8}{'seconds':>10}{'of cp':>8}{'CPU seconds':>14}{'peak RSS, GB':>15}")
    base = statistics.median(seconds for seconds, _, _ in measured["cp"])
    for name, rows in measured.items():
        seconds, processor, _ = (statistics.median(column) for column in zip(*rows, strict=True))
        memory = max(row[-1] for row in rows)
        print(f"{name:8}{seconds:>10.1f}{seconds / base:>8.2f}{processor:>14.1f}{memory:>15.2f}")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="1b")
    parser.add_argument("--folder", help="where to work (default: that of temporary files, which TMPDIR sets)")
    parser.add_argument("--build", metavar="FILE", help="only write the checkpoint")
    arguments = parser.parse_args()
    if arguments.build:
        build(Path(arguments.build), arguments.scale)
        return
    parent = Path(arguments.folder or tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    free, needed = shutil.disk_usage(parent).free / 1e9, 2.3 * SCALES[arguments.scale]["gb"]
    if free < needed:
        raise SystemExit(f"'{parent}' has {free:.1f} GB free, and {needed:.1f} are needed. Give another --folder.")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that the folder goes
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        compare(Path(folder), arguments.scale)


if __name__ == "__main__":
    main()
