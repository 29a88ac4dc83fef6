"""Cross-checks of a recipe's batch sizes, times and devices, from the recipe alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from composer.core import Time, TimeUnit

from llmshearing import devices
from llmshearing.errors import InputError
from llmshearing.evaluators import updates_proportions


def batches(time: str | int, recipe: dict[str, Any], key: str) -> float:
    """A recipe's time in batches.

    Raises:
        InputError: not a time, or in a unit that training data without an end does not have.
    """
    try:
        value = Time.from_timestring(str(time))
    except (ValueError, TypeError) as error:
        raise InputError(f"{key} is '{time}', which is not a time such as '640ba' or '0.03dur'.") from error
    sequences = recipe["global_train_batch_size"]
    if value.unit == TimeUnit.DURATION and key != "max_duration":
        return value.value * batches(recipe["max_duration"], recipe, "max_duration")
    per_batch = {TimeUnit.BATCH: 1, TimeUnit.SAMPLE: sequences, TimeUnit.TOKEN: sequences * recipe["max_seq_len"]}
    if value.unit not in per_batch:
        raise InputError(f"{key} is '{time}'; the data has no end, so give it in ba (batches), sp or tok.")
    return value.value / per_batch[value.unit]


def evaluation_interval(recipe: dict[str, Any]) -> tuple[str, float]:
    """The recipe key that sets how often domains are evaluated, and its value in batches."""
    settings = recipe["eval_loader"]
    if isinstance(settings, dict) and (own := settings.get("eval_interval")):
        return "eval_loader.eval_interval", batches(own, recipe, "eval_loader.eval_interval")
    return "eval_interval", batches(recipe["eval_interval"], recipe, "eval_interval")


def problems(recipe: dict[str, Any], *, num_devices: int) -> Iterator[str]:
    """What contradicts itself in batch sizes, times and devices; each message names the remedy.

    Raises:
        InputError: max_duration or another time is not one.
    """
    yield from _batch_problems(recipe, num_devices)
    duration = batches(recipe["max_duration"], recipe, "max_duration")
    warmups = {"scheduler.t_warmup": recipe["scheduler"].get("t_warmup", "0ba")}
    if (pruning := recipe["algorithms"].get("targeted_pruning")) is not None:
        yield from _pruning_problems(pruning, recipe, duration)
    for key, time in warmups.items():
        if (warmup := batches(time, recipe, key)) >= duration:
            yield f"{key} takes {warmup:g} batches, but training has only {duration:g}: shorten it."
    if updates_proportions(recipe):
        yield from _round_problems(recipe, duration)
    if recipe["precision"] == "amp_fp16" and pruning is not None:
        yield "precision amp_fp16 would scale the masks' gradients: use amp_bf16."
    yield from devices.problems(recipe, num_devices=num_devices)


def _pruning_problems(pruning: dict[str, Any], recipe: dict[str, Any], duration: float) -> Iterator[str]:
    section, search = "algorithms.targeted_pruning", pruning.get("search")
    longest, what = duration, f"training has only {duration:g}"
    for key in ("search", "warmup"):
        if str(pruning.get(key)).endswith("dur") and not recipe["max_duration"].endswith("ba"):
            yield (
                f"{section}.{key} is '{pruning[key]}', a share of the run, but max_duration is "
                f"'{recipe['max_duration']}'. Give one in batches."
            )
    if search is not None:
        longest = batches(search, recipe, f"{section}.search")
        what = f"the search for units has only {longest:g}"
        if longest > duration:
            yield f"{section}.search takes {longest:g} batches, but training has only {duration:g}: shorten it."
    warmup = pruning.get("warmup") or ("640ba" if search is None else None)
    if warmup is None or pruning.get("selection", "learned") != "learned":
        return
    if (steps := batches(warmup, recipe, f"{section}.warmup")) >= longest:
        yield f"{section}.warmup takes {steps:g} batches, but {what}: shorten it."


def _batch_problems(recipe: dict[str, Any], num_devices: int) -> Iterator[str]:
    batch, microbatch = recipe["global_train_batch_size"], recipe["device_train_microbatch_size"]
    share, alike = devices.samples_per_device(recipe, num_devices), devices.replication(recipe)
    groups = max(1, num_devices // alike)
    if num_devices % alike:
        yield (
            f"train_loader.dataset.replication is {alike}, which does not divide {num_devices} devices into groups: "
            "set it to the size of a tensor- or context-parallel group."
        )
    elif batch % groups:
        yield (
            f"global_train_batch_size is {batch}, which {groups} {'devices' if alike == 1 else 'groups of devices'} "
            f"cannot share evenly: choose a multiple of {groups}."
        )
    elif microbatch != "auto" and microbatch > share:
        yield (
            f"device_train_microbatch_size is {microbatch}, but each of {num_devices} devices gets only "
            f"{share} of {batch} sequences: lower it, or use fewer devices."
        )


def _round_problems(recipe: dict[str, Any], duration: float) -> Iterator[str]:
    if recipe["eval_loader"] is None:
        yield "dynamic_batch_loading reads each domain's evaluation loss, but there is no eval_loader: add one."
        return
    update = (recipe["train_loader"].get("dataset") or {}).get("update_interval", 0)
    if not isinstance(update, int):
        return  # which the dataset itself refuses
    key, interval = evaluation_interval(recipe)
    if update and update < duration and (not interval or (update / interval) % 1):
        yield (
            f"{key} is {interval:g} batches and the mix is updated every {update}: domains would not be evaluated when "
            f"a round ends. Set it to {update}ba (train_loader.dataset.update_interval) or to a part of it."
        )
