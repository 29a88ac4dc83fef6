"""``dry_run=true`` on any recipe: build it without weights, check it, and say what it would take.

``composer -m llmshearing.train RECIPE.yaml dry_run=true``, or ``dry_run.num_devices=16 dry_run.device_tflops=200`` to
plan for other devices than those of this run.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from composer.utils import dist, get_device

from llmshearing.architecture.shapes import ModelShape
from llmshearing.compute import forward_flops, training_flops
from llmshearing.data.cache import DataBytes
from llmshearing.devices import check_device
from llmshearing.dry_run import estimates, parts, schedule
from llmshearing.dry_run.checks import check
from llmshearing.dry_run.disk import disk
from llmshearing.dry_run.parts import Data, Findings
from llmshearing.dry_run.transfers import Transfers
from llmshearing.errors import InputError, unknown_name
from llmshearing.schema import Number, unfit

_PLANNED = {
    "num_devices": Number(1, 10**7),
    "device_tflops": Number(1e-6, 1e6, whole=False),
    "num_nodes": Number(1, 10**6),
}
_DEVICES_OF_A_NODE = 8


@dataclass(frozen=True)
class Devices:
    """What a dry run plans for.

    Args:
        num_devices: how many.
        device_tflops: 10^12 floating-point operations per second that one really does, not its peak: 150 is about half
            of an A100's peak in bfloat16.
        num_nodes: how many nodes they are on, as many on each.
    """

    num_devices: int
    device_tflops: float = 150.0
    num_nodes: int = 1

    @classmethod
    def from_recipe(cls, value: bool | Mapping[str, Any]) -> Self:
        """From ``dry_run: true`` or ``dry_run: {num_devices, device_tflops, num_nodes}``.

        Raises:
            InputError: an unknown key, a number that is not above 0, or devices that nodes cannot share evenly.
        """
        given = value if isinstance(value, Mapping) else {}
        settings = {"num_devices": dist.get_world_size(), **given}
        for key, number in settings.items():
            if key not in _PLANNED:
                raise unknown_name("key in dry_run", key, _PLANNED)
            if not _PLANNED[key].fits(number):
                raise unfit(f"dry_run.{key}", number, _PLANNED[key])
        devices, nodes = settings["num_devices"], settings.get("num_nodes", 1)
        if devices % nodes:
            raise InputError(
                f"dry_run.num_nodes: {nodes} nodes cannot share {devices} devices evenly. Set it to a divisor of them."
            )
        if "num_nodes" not in settings:  # those of this run, or where others are planned for of eight devices each
            here = dist.get_world_size() // dist.get_local_world_size()
            settings["num_nodes"] = -(-devices // _DEVICES_OF_A_NODE) if "num_devices" in given else here
        return cls(**settings)


def dry_run(recipe: dict[str, Any]) -> None:
    """Check a recipe and write what it would take to stdout.

    Args:
        recipe: complete, from :func:`~llmshearing.recipe.load_recipe`.

    Raises:
        InputError: the recipe contradicts itself or what it found; names every contradiction.
    """
    logging.getLogger("composer").setLevel(logging.ERROR)  # what it warns of here concerns a training run
    warnings.filterwarnings("ignore", message="FSDP2 Config/APIs are experimental")
    check_device(recipe["device"])
    dist.initialize_dist(get_device(recipe["device"]), timeout=recipe["dist_timeout"])
    devices = Devices.from_recipe(recipe["dry_run"])
    findings = Findings()
    lines = describe(recipe, devices, findings)
    if dist.get_global_rank() == 0:
        sys.stdout.write("\n".join([*lines, *(f"not here    {what}" for what in findings.absent), ""]))
    findings.refuse()


def describe(recipe: dict[str, Any], devices: Devices, findings: Findings) -> list[str]:
    """The report's lines; what is wrong or was not there goes into ``findings``.

    Raises:
        InputError: the model or the duration cannot be told, without which there is nothing to report.
    """
    checked = check(recipe, num_devices=devices.num_devices, findings=findings)
    data = None
    with findings.collect():
        data = parts.open_data(recipe, checked.tokenizer, findings)
    source, target = checked.source, checked.target
    lines = [f"Dry run of '{recipe['run_name']}' for {devices.num_devices} devices. Nothing is loaded or trained."]
    lines += [f"model       {source}: {source.num_parameters():,} parameters"]
    if target is not None:
        share = target.num_parameters() / source.num_parameters()
        lines += [f"target      {target}: {target.num_parameters():,} parameters, {share:.1%} of the model"]
    lines += _data_lines(data, recipe, checked.duration)
    lines += _cost_lines(source, recipe, checked.duration, devices, data, checked.teacher)
    moved = None if data is None else Transfers(data.train, checked.duration, nodes=devices.num_nodes)
    lines += moved.lines() if moved is not None else []
    return [*lines, _disk_line(source, recipe, checked.duration, devices, data, moved)]


def _data_lines(data: Data | None, recipe: Mapping[str, Any], duration: float) -> list[str]:
    sequences = duration * recipe["global_train_batch_size"]
    lines = [
        f"tokens      {duration:,.0f} batches of {recipe['global_train_batch_size']} sequences of "
        f"{recipe['max_seq_len']}: {sequences * recipe['max_seq_len']:,.0f}"
    ]
    if data is None:
        return lines
    for domain, available in data.sequences.items():
        passes = data.shares[domain] * sequences / available
        lines += [f"data        {domain}: {available:,} sequences, {passes:.2f} passes at the first round's share"]
    return lines


def _cost_lines(
    shape: ModelShape,
    recipe: Mapping[str, Any],
    duration: float,
    devices: Devices,
    data: Data | None,
    teacher: ModelShape | None,
) -> list[str]:
    seq_len, fsdp = recipe["max_seq_len"], recipe["fsdp_config"]
    checkpointing = bool((fsdp or {}).get("activation_checkpointing"))
    microbatch = recipe["device_train_microbatch_size"]
    sizes = {
        "seq_len": seq_len,
        "microbatch_size": 1 if microbatch == "auto" else microbatch,
        "num_shards": devices.num_devices,
        "sharded": fsdp is not None,
        "precision": recipe["precision"],
    }
    memory = estimates.training_memory(shape, checkpointing=checkpointing, **sizes)
    gigabytes = {**vars(memory), "total": memory.total}
    if teacher:
        settings = {"top_k": 64, **recipe["algorithms"]["source_distillation"]}
        asked = {key: settings[key] for key in ("top_k", "dtype") if key in settings}
        gigabytes["teacher"] = estimates.teacher_memory(teacher, shape, **asked, **sizes).total
        gigabytes["total"] += gigabytes["teacher"]
    tokens = duration * recipe["global_train_batch_size"] * seq_len
    training = tokens * training_flops(shape, seq_len=seq_len, checkpointing=checkpointing)
    _, interval = schedule.evaluation_interval(dict(recipe))
    evaluated = duration // interval * data.eval_sequences * seq_len if data and interval else 0.0
    evaluation = evaluated * forward_flops(shape, seq_len=seq_len)
    asking = tokens * forward_flops(teacher, seq_len=seq_len) if teacher else 0.0
    flops, rate = training + evaluation + asking, f"{devices.device_tflops:g} TFLOP/s"
    hours = flops / (devices.device_tflops * 1e12) / 3600
    of_what = ", of the dense source" if "targeted_pruning" in recipe["algorithms"] else ""
    without = "" if data else ", without evaluation"
    gb = {name: f"{value / 1e9:.3g}" for name, value in gigabytes.items()}
    with_teacher = f", teacher {gb['teacher']}" if teacher else ""
    return [
        f"memory      about {gb['total']} GB per device (estimate): weights, gradients and Adam {gb['states']}, "
        f"gathered {gb['gathered']}, activations {gb['activations']}, logits {gb['logits']}{with_teacher}; "
        f"microbatches of {'1 (auto)' if microbatch == 'auto' else microbatch}",
        f"compute     about {flops:.2e} FLOP (estimate{of_what}{without}): {_number(hours)} device-hours at {rate}, "
        f"{_number(hours / devices.num_devices)} hours on {devices.num_devices}",
    ]


def _disk_line(
    shape: ModelShape,
    recipe: Mapping[str, Any],
    duration: float,
    devices: Devices,
    data: Data | None,
    moved: Transfers | None,
) -> str:
    needed = disk(
        recipe,
        parameters=shape.num_parameters(),
        batches=duration,
        saves=duration / max(1.0, schedule.batches(recipe["save_interval"], dict(recipe), "save_interval")),
        train=moved.of_node() if moved else DataBytes(),
        evaluation=data.eval_bytes if data else DataBytes(),
        num_nodes=devices.num_nodes,
    )
    gb = {name: f"{value / 1e9:.3g}" for name, value in {**vars(needed), "total": needed.total}.items()}
    without = "" if data else ", without data"
    return (
        f"disk        about {gb['total']} GB on each of {devices.num_nodes} nodes (estimate{without}): data here "
        f"{gb['data']}, cache {gb['cache']}, checkpoints {gb['checkpoints']}, metrics {gb['records']}, temporary "
        f"{gb['temporary']}; download in all {gb['download']} GB, in the store {gb['store']} GB"
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
