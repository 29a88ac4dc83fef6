"""What a budget means in batches, learning rates and devices: rules that give the shipped recipes' settings.

A budget of tokens is about a thousand batches where it is small and batches of a million tokens where it is large, as
in the paper. Masks are learned where that is a small part of the budget: the paper spends under 1% of 50 billion tokens
on 3,200 batches. Below, units are chosen by scores, and what is left is fitted (``docs/results.md``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmshearing.architecture.shapes import ModelShape
from llmshearing.dry_run.estimates import teacher_memory, training_memory
from llmshearing.errors import InputError
from llmshearing.pruning.rotation import rotates

LARGEST_BATCH = 2**20  # tokens, the paper's
LEAST_SEQUENCES = 8
LEARNED_FROM = 10.0  # tokens per parameter of the target; the paper has 19
_LEARNING = 3200  # batches, of an eighth of the later ones' sequences, as in the paper
_SHARE_OF_LEARNING = 0.1  # of the budget, at most
_FILLED = 0.8  # of a device's memory, by an estimate
_SMALL = 1e9  # parameters, below which a higher learning rate was measured to be better
WEIGHT, TOP_K = 0.5, 64  # of distillation


@dataclass(frozen=True)
class Machine:
    """What trains.

    Args:
        num_devices: GPUs, or processes on a CPU.
        gpu: whether they are GPUs.
        memory: bytes of each.
    """

    num_devices: int
    gpu: bool
    memory: float


@dataclass(frozen=True)
class Training:
    """One run.

    Args:
        batches: how many.
        batch_size: sequences of each, over all devices.
        microbatch_size: sequences of a forward pass on a device.
        interval: batches between evaluations and updates of the mix.
        save_interval: batches between checkpoints.
        warmup: batches of the learning rate.
        lr: its peak.
        sharded: whether by FSDP.
    """

    batches: int
    batch_size: int
    microbatch_size: int
    interval: int
    save_interval: int
    warmup: int
    lr: float
    sharded: bool


@dataclass(frozen=True)
class Plan:
    """Both runs.

    Args:
        learned: whether masks are learned, or chosen by scores.
        rotated: whether the source is turned before it is scored.
        prune: the first run.
        after: the second one.
    """

    learned: bool
    rotated: bool
    prune: Training
    after: Training


def make_plan(
    source: ModelShape, target: ModelShape, *, tokens: float, seq_len: int, machine: Machine, learned: bool | None
) -> Plan:
    """What to do with a budget.

    Args:
        source: shape of the model to shear.
        target: shape to shear it to.
        tokens: to train on in all.
        seq_len: tokens of a sequence.
        machine: to train on.
        learned: whether masks are learned; by the budget if ``None``.

    Raises:
        InputError: too few tokens, or devices that do not share a batch evenly.
    """
    size = _power_of_two(min(tokens / 1000, LARGEST_BATCH) / seq_len)
    size = max(LEAST_SEQUENCES, size, machine.num_devices)
    batches = int(tokens // (size * seq_len))
    small = max(LEAST_SEQUENCES, size // 8, machine.num_devices)
    part = _LEARNING * small / size  # of learning, in batches of the later size
    if learned is None:
        enough = tokens / target.num_parameters() >= LEARNED_FROM
        learned = enough and part <= _SHARE_OF_LEARNING * batches
    pruned = min(_LEARNING, int(batches * size / small / 3)) if learned else 1
    left = batches - math.ceil(pruned * small / size) if learned else batches - 1
    if left < 10:
        raise InputError(
            f"--tokens is {tokens:,.0f}: {max(left, 0)} batches of {size} sequences of {seq_len} tokens are left to "
            f"train on. Give {12 * size * seq_len:,} at least."
        )
    for number in (size, small):
        if number % machine.num_devices:
            raise InputError(
                f"A batch of {number} sequences cannot be shared evenly by {machine.num_devices} devices. Give a power "
                "of two."
            )
    lr = 1e-4 if learned or target.num_parameters() >= _SMALL else 3e-4
    prune = _training(source, None, pruned, small if learned else LEAST_SEQUENCES, 50, lr, seq_len, machine)
    after = _training(target, None if learned else source, left, size, 400, lr, seq_len, machine)
    turned = not learned and target.hidden_size < source.hidden_size and rotates(source.family.layout)
    return Plan(learned, turned, prune, after)


def _training(
    shape: ModelShape,
    teacher: ModelShape | None,
    batches: int,
    size: int,
    longest: int,
    lr: float,
    seq_len: int,
    machine: Machine,
) -> Training:
    size = max(size, machine.num_devices)
    interval = min(longest, max(5, _round(batches / 20)))
    microbatch, sharded = _fit(shape, teacher, size // machine.num_devices, seq_len, machine)
    return Training(
        batches=batches,
        batch_size=size,
        microbatch_size=microbatch,
        interval=interval,
        save_interval=min(interval * (2 if longest > 50 else 4), max(interval, batches)),
        warmup=batches // (30 if longest > 50 else 10),
        lr=lr,
        sharded=sharded,
    )


def _fit(shape: ModelShape, teacher: ModelShape | None, most: int, seq_len: int, machine: Machine) -> tuple[int, bool]:
    """Sequences of a forward pass, and whether the model is sharded: whole models first, then the larger pass."""
    if not machine.gpu:
        return math.gcd(most, _power_of_two(1024 / seq_len)), False
    sizes = [size for size in (16, 8, 4, 2, 1) if most % size == 0]
    ways = [False, True] if machine.num_devices > 1 else [False]
    for sharded in ways:
        for size in sizes:
            memory = training_memory(
                shape,
                seq_len=seq_len,
                microbatch_size=size,
                num_shards=machine.num_devices,
                sharded=sharded,
                checkpointing=sharded,
            ).total
            if teacher is not None:
                memory += teacher_memory(
                    teacher,
                    shape,
                    seq_len=seq_len,
                    microbatch_size=size,
                    num_shards=machine.num_devices,
                    sharded=sharded,
                    top_k=TOP_K,
                ).total
            if memory <= _FILLED * machine.memory:
                return size, sharded
    return 1, len(ways) > 1


def _power_of_two(number: float) -> int:
    return 2 ** max(0, round(math.log2(max(1.0, number))))


def _round(number: float) -> int:
    """To one of 1, 2 and 5 times a power of ten, not above the number."""
    if number < 1:
        return 1
    power = 10 ** int(math.log10(number))
    return int(max(step * power for step in (1, 2, 5) if step * power <= number))
