"""Parts that train the debug recipe through ``llmshearing.train``, one way against another."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from composer import Trainer
from composer.core import Callback, State
from composer.loggers import Logger

from benchmarks.gpu_check.part import FailedError, Found, Setup, SkippedError, within
from benchmarks.quality.sources import ROOT
from llmshearing.data_prep import debug_corpus, prepare, train_tokenizer
from llmshearing.recipe import load_recipe
from llmshearing.train import build_trainer

RECIPE = ROOT / "yamls" / "debug" / "prune.yaml"
BATCHES = 10
SAVED = 5  # batches after which the run that is killed has saved
# Of losses, relative, over 10 batches. On a GPU Composer multiplies matrices in TF32.
ELSEWHERE, OTHERWISE, RESUMED = 0.02, 5e-3, 1e-6


def plain(setup: Setup) -> Found:
    """The recipe on the device, against the CPU; makes the data for the parts that follow."""
    _make_data(setup.folder)
    ours = _train(setup, "plain")
    (setup.folder / "losses.json").write_text(json.dumps(ours))
    if not setup.on_gpu:
        return Found(f"{len(ours)} losses", {"losses": ours})
    if code := _apart(replace(setup, device="cpu"), "cpu"):
        raise FailedError(f"training on the CPU ended with exit code {code}")
    return _compared(ours, _losses(setup, "cpu"), "those on the CPU", ELSEWHERE)


def fsdp2(setup: Setup) -> Found:
    """Under FSDP2 on one device the losses are those of no FSDP."""
    os.environ["FSDP_VERSION"] = "2"
    return _as_plain(setup, "fsdp2", "fsdp_config={activation_checkpointing: true, state_dict_type: full}")


def fsdp1(setup: Setup) -> Found:
    """Under FSDP1, which Composer has for CUDA alone."""
    if not setup.on_gpu:
        raise SkippedError("needs a GPU")
    os.environ["FSDP_VERSION"] = "1"
    return _as_plain(setup, "fsdp1", "fsdp_config={activation_checkpointing: true, state_dict_type: full}")


def compiled(setup: Setup) -> Found:
    """With ``torch.compile``."""
    return _as_plain(setup, "compiled", "compile_config={mode: default}")


def auto_microbatches(setup: Setup) -> Found:
    """Where the batch does not fit, ``auto`` finds microbatches that do, and the losses are theirs."""
    if not setup.on_gpu:
        raise SkippedError("needs a GPU")
    batch, limit = 64, 200e6  # 8,192 tokens ask for about 300 MB
    settings = (f"global_train_batch_size={batch}", "max_duration=6ba")
    theirs = _train(setup, "microbatches", *settings, "device_train_microbatch_size=8")
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    ours = _train(setup, "auto", *settings, "device_train_microbatch_size=auto")
    size = _metrics(setup, "auto", "trainer/device_train_microbatch_size")[-1]
    if size >= batch:
        raise FailedError(f"the batch of {batch} fitted into {limit / 1e6:.0f} MB: nothing was tried")
    found = _compared(ours, theirs, "those of microbatches of 8", OTHERWISE)
    return Found(f"{size:.0f} of {batch}; {found.figure}", {**found.values, "microbatch": size})


def resumed(setup: Setup) -> Found:
    """A run that is killed after its checkpoint, and goes on, has the losses of one that is not."""
    codes = [_apart(setup, "straight"), _apart(setup, "resumed", killed=True), _apart(setup, "resumed")]
    if codes != [0, -signal.SIGKILL, 0]:
        raise FailedError(f"exit codes {codes} of a straight run, one that kills itself and one that goes on")
    started = json.loads((setup.folder / "resumed" / "started.json").read_text())
    if started != SAVED:
        raise FailedError(f"the run went on from batch {started}, not {SAVED}")
    ours, theirs = (_losses(setup, name) for name in ("resumed", "straight"))
    return _compared(ours, theirs, f"those of a run that was not killed after batch {SAVED + 1}", RESUMED)


def _as_plain(setup: Setup, name: str, *settings: str) -> Found:
    if not (recorded := setup.folder / "losses.json").is_file():
        raise FailedError("nothing to compare with: part 'plain' did not end well")
    ours = _train(setup, name, *settings)
    return _compared(ours, json.loads(recorded.read_text()), "those without", OTHERWISE)


def _compared(ours: list[float], theirs: list[float], whose: str, bound: float) -> Found:
    if len(ours) != len(theirs) or not all(map(math.isfinite, ours)):
        raise FailedError(f"losses of {len(ours)} batches: {ours}, not {len(theirs)}")
    worst = max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))
    figure = f"{len(ours)} losses, {within('relative difference', worst, bound)} from {whose}"
    return Found(figure, {"losses": ours, "others": theirs, "difference": worst, "bound": bound})


def _make_data(folder: Path) -> None:
    corpus, tokenizer, data = (str(folder / name) for name in ("corpus", "tokenizer", "data"))
    debug_corpus.main([corpus])
    train_tokenizer.main([corpus, tokenizer, "--vocab-size", "1024"])
    settings = ["--tokenizer", tokenizer, "--seq-len", "128", "--eval-sequences", "16", "--workers", "1"]
    prepare.main([corpus, data, *settings])


def _trainer(setup: Setup, name: str, *settings: str) -> Trainer:
    where = (f"variables.data={setup.folder}/data", f"variables.run={setup.folder}/{name}")
    device = "gpu" if setup.on_gpu else "cpu"
    short = (f"max_duration={BATCHES}ba", f"algorithms.targeted_pruning.warmup={BATCHES // 2}ba")
    common = (f"tokenizer.name={setup.folder}/tokenizer", f"device={device}", *short)
    torch.set_flush_denormal(True)
    trainer = build_trainer(load_recipe(RECIPE, (*where, *common, *settings)))
    assert trainer is not None  # else the run was finished
    if trainer.state.fsdp_enabled != any(setting.startswith("fsdp_config=") for setting in settings):
        raise FailedError(f"FSDP is {'on' if trainer.state.fsdp_enabled else 'off'}")
    return trainer


def _train(setup: Setup, name: str, *settings: str) -> list[float]:
    """In this process; the losses of all batches."""
    trainer = _trainer(setup, name, *settings)
    trainer.fit()
    trainer.close()
    return _losses(setup, name)


def _losses(setup: Setup, name: str) -> list[float]:
    return _metrics(setup, name, "loss/train/total")


def _metrics(setup: Setup, name: str, key: str) -> list[float]:
    lines = (setup.folder / name / "metrics.jsonl").read_text().splitlines()
    return [float(row[key]) for row in map(json.loads, lines) if key in row]


def _apart(setup: Setup, name: str, *, killed: bool = False) -> int:
    """In a process of its own, with kernels that always add in the same order; its exit code."""
    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    if not setup.on_gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    arguments = [str(setup.folder), setup.device, name, *(["killed"] if killed else [])]
    command = [sys.executable, "-m", "benchmarks.gpu_check.training", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


class _Kill(Callback):
    """Ends the process as the machine would."""

    def batch_start(self, state: State, logger: Logger) -> None:
        """After the checkpoint, and a batch that is lost."""
        if state.timestamp.batch == SAVED + 1:
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder: str, device: str, name: str, killed: str = "") -> None:
    """What :func:`_apart` starts: trains ``name``, and goes on if it has been there."""
    warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation")
    torch.use_deterministic_algorithms(True, warn_only=True)
    setup = Setup(device, False, Path(folder))
    saving = (f"save_interval={SAVED}ba", "save_num_checkpoints_to_keep=-1", "autoresume=true", "save_overwrite=false")
    trainer = _trainer(setup, name, *saving)
    (setup.folder / name / "started.json").write_text(json.dumps(int(trainer.state.timestamp.batch)))
    if killed:
        trainer.state.callbacks.append(_Kill())
    trainer.fit()
    trainer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
