"""What a recipe asks of devices: which, how many, how they share the model, and in which precision they compute."""

from __future__ import annotations

import os
from collections import abc
from collections.abc import Iterator
from typing import Any

import torch
from composer.utils.parallelism import FSDP2Config

from llmshearing.errors import InputError, unknown_name
from llmshearing.schema import Boolean, Choice, Kind, Mapping, Text, unfit

# Settings of FSDP2Config, but for device_mesh, which no recipe can write down.
_FSDP2: dict[str, Kind] = {
    "activation_checkpointing": Boolean(),
    "activation_cpu_offload": Boolean(),
    "load_monolith_rank0_only": Boolean(),
    "mixed_precision": Choice("DEFAULT", "PURE", "FULL"),
    "reshard_after_forward": Boolean(),
    "state_dict_type": Choice("sharded", "full"),
    "verbose": Boolean(),
}
_COMPILE: dict[str, Kind] = {
    "backend": Text("a backend of torch.compile"),
    "disable": Boolean(),
    "dynamic": Boolean(),
    "fullgraph": Boolean(),
    "mode": Choice("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
    "options": Mapping("{max_autotune: true}"),
}


def fsdp_version() -> int:
    """2, unless the environment says ``FSDP_VERSION=1``.

    Raises:
        InputError: it says anything else.
    """
    version = os.environ.get("FSDP_VERSION", "2")
    if version not in ("1", "2"):
        raise InputError(f"FSDP_VERSION is {version!r} in the environment; it must be 1 or 2, or unset (2).")
    return int(version)


def samples_per_device(recipe: abc.Mapping[str, Any], num_devices: int) -> int:
    """Sequences of a global batch on each device, of which groups of ``replication`` devices have the same ones."""
    share: int = recipe["global_train_batch_size"] * replication(recipe) // num_devices
    return share


def replication(recipe: abc.Mapping[str, Any]) -> int:
    """Devices that get the same sequences; what is no number of them the dataset itself refuses."""
    ranks = (recipe["train_loader"].get("dataset") or {}).get("replication")
    return ranks if isinstance(ranks, int) and ranks >= 1 else 1


def parallelism(fsdp_config: dict[str, Any] | None) -> dict[str, Any] | None:
    """The Trainer's ``parallelism_config``.

    Raises:
        InputError: an unknown key, or a value that it cannot have.
    """
    if fsdp_config is None:
        return None
    if fsdp_version() == 1:
        return {"fsdp": dict(fsdp_config)}
    _check_settings("fsdp_config", fsdp_config, _FSDP2)
    return {"fsdp": FSDP2Config(**fsdp_config)}


def sharded(fsdp_config: dict[str, Any] | None) -> bool:
    """Whether every rank writes its own part of a checkpoint."""
    default = "sharded" if fsdp_version() == 2 else "full"
    return fsdp_config is not None and fsdp_config.get("state_dict_type", default) == "sharded"


def problems(recipe: dict[str, Any], *, num_devices: int) -> Iterator[str]:
    """What the devices of this run, or ``num_devices`` planned for, cannot do; each message names the remedy."""
    if (problem := init_device_problem(recipe, num_devices)) is not None:
        yield problem
    if recipe["precision"] == "amp_fp16" and recipe["device"] == "cpu":
        yield "precision is 'amp_fp16', which needs a GPU: use amp_bf16 or fp32."
    fsdp = recipe["fsdp_config"] is not None
    if recipe["device_train_microbatch_size"] == "auto" and fsdp and fsdp_version() == 2:
        yield (
            "device_train_microbatch_size is 'auto', which works under FSDP1 alone: give a number, such as 1 (its "
            "default with fsdp_config), and more while memory lasts."
        )
    if (settings := recipe["compile_config"]) is not None:
        try:
            _check_settings("compile_config", settings, _COMPILE)
        except InputError as error:
            yield str(error)
        if (backend := settings.get("backend")) is not None and backend not in torch.compiler.list_backends(None):
            yield str(unknown_name("compile_config.backend", backend, torch.compiler.list_backends()))


def check_device(name: str | None) -> None:
    """Refuse a device that this machine has not.

    Raises:
        InputError: there is none; names the others.
    """
    there = {"gpu": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name is not None and not there.get(name, True):
        raise InputError(f"device is '{name}', but there is none here; use cpu, or leave the key out.")


def init_device_problem(recipe: dict[str, Any], world_size: int) -> str | None:
    """What is wrong with weights on rank 0 alone, where nothing hands them on; ``None`` if nothing is.

    On one rank there is nobody to hand them to.
    """
    if recipe["model"].get("init_device") != "mixed" or world_size == 1:
        return None
    cpu = f"set model.init_device=cpu, by which each of the {world_size} ranks reads them"
    if recipe["fsdp_config"] is None:
        return (
            "model.init_device is 'mixed': rank 0 alone reads the weights, and without fsdp_config nothing hands them "
            f"on. Add fsdp_config, or {cpu}."
        )
    if fsdp_version() == 1:
        return f"model.init_device is 'mixed', which needs FSDP2, but FSDP_VERSION is 1. Unset FSDP_VERSION, or {cpu}."
    return None


def _check_settings(section: str, settings: dict[str, Any], known: dict[str, Kind]) -> None:
    for key, value in settings.items():
        if key not in known:
            raise unknown_name(f"key in {section}", key, known)
        if value is not None and not known[key].fits(value):
            raise unfit(f"{section}.{key}", value, known[key])
