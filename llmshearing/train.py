"""Prune or continue pre-training: ``composer [-n N] -m llmshearing.train RECIPE.yaml [key=value ...]``."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from composer import Trainer
from composer.core import Evaluator
from composer.utils import dist, get_device
from composer.utils.reproducibility import seed_all
from omegaconf import OmegaConf
from transformers import PreTrainedTokenizerBase

from llmshearing import environment, nodes
from llmshearing.compute import write_training_compute
from llmshearing.copies import parent_of
from llmshearing.data.callback import DynamicBatchLoading
from llmshearing.devices import check_device, parallelism, samples_per_device, sharded
from llmshearing.dry_run.checks import Checked, check
from llmshearing.dry_run.parts import Findings, check_length, open_data, teacher_shape
from llmshearing.dry_run.report import dry_run
from llmshearing.errors import InputError, cli, naming, one_line
from llmshearing.evaluators import build_recipe_evaluators
from llmshearing.fileio import write_text
from llmshearing.following import command
from llmshearing.metrics_log import MetricsLog
from llmshearing.parentage import end_with_parent
from llmshearing.progress import ProgressLine
from llmshearing.pruning.scores import Scores
from llmshearing.recipe import load_recipe
from llmshearing.registry import build
from llmshearing.resume import Start, find_start
from llmshearing.run_place import RunPlace
from llmshearing.together import problems_of_all, several, together
from llmshearing.tokenizer import load_tokenizer
from llmshearing.unfinished import newest_checkpoint

log = logging.getLogger("llmshearing.train")  # also where the module is run, as __main__

# Recipe keys that are the Trainer's own arguments of the same name.
_PASSED_ON = (
    "run_name", "seed", "max_duration", "eval_interval", "compile_config", "device", "dist_timeout", "log_to_console",
    "console_log_interval",
)  # fmt: skip
_PLACED = ("save_folder", "save_interval", "save_num_checkpoints_to_keep", "save_overwrite")


def build_trainer(recipe: dict[str, Any], place: RunPlace | None = None) -> Trainer | None:
    """Build everything that a recipe describes.

    All that a dry run checks comes first, data included, then the checkpoint to start from, and weights last.

    Args:
        recipe: complete, from :func:`~llmshearing.recipe.load_recipe`.
        place: where the run writes; as the recipe says if ``None``.

    Returns:
        The Trainer; ``None`` where the run is finished already.

    Raises:
        InputError: a setting that cannot work, before any training.
    """
    place = place or RunPlace(recipe)
    check_device(recipe["device"])
    device = get_device(recipe["device"])
    nodes.choose_interface()
    dist.initialize_dist(device, timeout=recipe["dist_timeout"])
    findings = Findings()
    nodes.check_alike(recipe)
    with together():
        checked = check(recipe, num_devices=dist.get_world_size(), findings=findings)
    findings.problems = problems_of_all(findings.problems)
    if findings.problems:  # say at once what is wrong with the data, too
        with findings.collect():
            open_data(recipe, checked.tokenizer, findings)
    findings.refuse()
    tokenizer = load_tokenizer(recipe["tokenizer"])
    train_loader, evaluators = _build_data(recipe, tokenizer, findings)
    start = _start(place, checked.tensors)
    if start.finished:
        log.warning("Run '%s' is finished: '%s' is at %s.", recipe["run_name"], start.path, recipe["max_duration"])
        return None
    algorithms, callbacks, loggers = (_build_all(recipe, kind) for kind in ("algorithms", "callbacks", "loggers"))
    seed_all(recipe["seed"])  # the Trainer does so too, but after random weights have been drawn
    model = _build(recipe, "model", tokenizer=tokenizer)
    if not start.saves_generation:
        model.generation = None
    for callback in callbacks:
        if isinstance(callback, DynamicBatchLoading):
            callback.saves_history = start.has_history  # until it is loaded
    trainer = Trainer(
        model=model,
        train_dataloader=train_loader,
        eval_dataloader=evaluators or None,
        optimizers=_build(recipe, "optimizer", params=model.parameters()),
        schedulers=_build(recipe, "scheduler"),
        algorithms=algorithms,
        callbacks=[*callbacks, *place.checkpoint_saver()],
        loggers=[MetricsLog(place.folder), *_progress(recipe), *loggers, *([place.uploader] if place.uploader else [])],
        progress_bar=False,  # of which a log file shows nothing
        device_train_microbatch_size=_microbatch_size(recipe["device_train_microbatch_size"], device.name),
        parallelism_config=parallelism(recipe["fsdp_config"]),
        load_path=start.path,
        load_weights_only=start.weights_only,
        autoresume=False,  # found above: Composer's own search has all nodes write and remove one file there
        precision="fp32" if device.name == "cpu" and recipe["precision"] == "amp_bf16" else recipe["precision"],
        **{key: recipe[key] for key in _PASSED_ON},
        **{key: place.recipe[key] for key in _PLACED},
    )
    trainer.logger.log_hyperparameters(_flat(recipe))
    if dist.get_global_rank() == 0:
        _note_compute(place.folder, recipe, checked, evaluators)
        if recipe["autoresume"]:
            place.count_earlier_checkpoints(trainer.state)
    return trainer


def _note_compute(folder: Path, recipe: dict[str, Any], checked: Checked, evaluators: Sequence[Any]) -> None:
    scores = recipe["algorithms"].get("targeted_pruning", {}).get("scores")
    # A teacher of the hub is here by now, but was not when the recipe was checked.
    teacher = checked.teacher or teacher_shape(recipe, checked.source, checked.tokenizer, Findings())
    if teacher is None and "source_distillation" in recipe["algorithms"]:
        log.warning("The sizes of the teacher are not known here, so `report compute` does not count it.")
    write_training_compute(
        folder,
        checked.source,
        teacher,
        seq_len=recipe["max_seq_len"],
        checkpointing=bool((recipe["fsdp_config"] or {}).get("activation_checkpointing")),
        eval_tokens=recipe["max_seq_len"] * sum(len(each.dataloader.dataloader.dataset) for each in evaluators),
        scores=0.0 if scores is None else Scores.load(scores).flops,
    )


def train(recipe: dict[str, Any]) -> None:
    """Build and fit; the run's folder gets the resolved recipe, metrics and checkpoints.

    Raises:
        InputError: a setting that cannot work, or a checkpoint that cannot be written.
    """
    place = RunPlace(recipe)
    try:
        _train(recipe, place)
    finally:
        place.close()


def _train(recipe: dict[str, Any], place: RunPlace) -> None:
    trainer = build_trainer(recipe, place)
    if trainer is None:
        return
    try:
        if dist.get_global_rank() == 0:
            write_text(place.folder / "recipe.yaml", OmegaConf.to_yaml(OmegaConf.create(recipe)))
            environment.record(place.folder, dist.get_world_size())
        with naming(recipe["save_folder"]), cpu_autocast(recipe["precision"], trainer.state.device.name):
            trainer.fit()
    except BaseException as error:
        trainer.engine.close()  # the Trainer's own would wait for other ranks, which may be gone
        place.give_up()
        # Of a worker, the message holds its traceback.
        if isinstance(error, RuntimeError) and (shard := re.search(r"Shard '.*' cannot be fetched .*", str(error))):
            raise InputError(shard[0]) from error
        if not isinstance(error, RuntimeError) or "PytorchStreamWriter failed" not in str(error):
            raise  # but for all that torch says of a full disk
        raise InputError(
            f"A checkpoint could not be written to '{place.recipe['save_folder']}': {one_line(error)[:200]}. Free some "
            "space there and run the command again."
        ) from error
    trainer.close()
    place.finish()
    if dist.get_global_rank() == 0:
        if sharded(recipe["fsdp_config"]) and place.address is None:
            # Of Composer's ranks each removes the link that one makes.
            newest_checkpoint(Path(recipe["save_folder"]), most=trainer.state.timestamp.batch.value)
        log.info("Next: %s", _next(recipe))


def _next(recipe: dict[str, Any]) -> str:
    """What makes a model's folder of the run's checkpoint."""
    above = parent_of(parent_of(recipe["save_folder"])) or "."
    step, name = ("shear", "sheared") if "targeted_pruning" in recipe["algorithms"] else ("export", "final")
    checkpoint, out = f"{recipe['save_folder']}/latest-rank0.pt", f"{above}/{name}"
    return command(f"python -m llmshearing.convert {step} {{checkpoint}} {{out}}", checkpoint=checkpoint, out=out)


def _start(place: RunPlace, shapes: Mapping[str, tuple[int, ...]]) -> Start:
    """Take the run's folder and choose the checkpoint to start from, on rank 0 for all.

    Raises:
        InputError: on all ranks, see :func:`find_start`; or nodes whose disks differ.
    """
    chosen: list[Start | None] = [None]
    recipe = place.recipe
    with together():
        place.claim()
    if several() and place.address is None:
        folder = Path(recipe["save_folder"])
        nodes.check_disks(folder, sharded=sharded(recipe["fsdp_config"]), autoresume=recipe["autoresume"])
    place.fetch()
    with together(), place.naming():
        if dist.get_global_rank() == 0:
            chosen = [find_start(recipe, shapes)]
    dist.broadcast_object_list(chosen)  # nobody looks for checkpoints before
    assert chosen[0] is not None
    if (path := place.here(chosen[0].path)) is not None and several() and path == chosen[0].path:
        nodes.check_copies(path)
    return replace(chosen[0], path=path)


def _build_data(
    recipe: dict[str, Any], tokenizer: PreTrainedTokenizerBase, findings: Findings
) -> tuple[Any, list[Evaluator]]:
    """The training data and the evaluators.

    Raises:
        InputError: as a dry run says it.
    """
    train_loader, evaluators = None, []
    with findings.collect():
        batch_size = samples_per_device(recipe, dist.get_world_size())
        train_loader = _build(recipe, "train_loader", tokenizer=tokenizer, device_batch_size=batch_size)
        check_length(train_loader.dataloader.dataset, recipe["max_seq_len"])
        evaluators = build_recipe_evaluators(recipe, train_loader.dataloader.dataset.domains, tokenizer)
    findings.problems = problems_of_all(findings.problems)
    findings.refuse()
    return train_loader, evaluators


@contextmanager
def cpu_autocast(precision: str, device: str) -> Iterator[None]:
    """bfloat16 autocast on the CPU, for which Composer itself refuses ``amp_bf16``."""
    enabled = device == "cpu" and precision == "amp_bf16"
    # Without a cache: it would keep the weights as they were before the optimizer's step.
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled, cache_enabled=False):
        yield


def _build(recipe: dict[str, Any], section: str, **given: Any) -> Any:
    settings = dict(recipe[section])
    return build(section, settings.pop("name"), settings, **given)


def _build_all(recipe: dict[str, Any], section: str) -> list[Any]:
    return [build(section, name, settings) for name, settings in recipe[section].items()]


def _progress(recipe: dict[str, Any]) -> list[ProgressLine]:
    return [ProgressLine()] if recipe["progress_bar"] else []


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Settings by their dotted names, as loggers can compare them between runs."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        nested = isinstance(value, Mapping) and value
        found |= _flat(value, f"{above}{key}.") if nested else {f"{above}{key}": value}
    return found


def _microbatch_size(size: int | str, device: str) -> int | str | None:
    if size == "auto" and device != "gpu":
        log.info("device_train_microbatch_size: auto needs a GPU; the whole batch is one microbatch here.")
        return None
    return size


@cli
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(f"{__doc__}\n")
        raise SystemExit(0 if arguments else 2)
    if "LOCAL_RANK" in os.environ:  # else a killed launcher leaves ranks that hold devices and the run's folder
        end_with_parent()
    recipe = load_recipe(arguments[0], arguments[1:])
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("llmshearing").setLevel(recipe["python_log_level"].upper())
    torch.set_flush_denormal(True)  # fp32 steps on the CPU are up to 15 times slower without
    warnings.filterwarnings("ignore", message="The value of the smallest subnormal")  # numpy notices the above
    if recipe["dry_run"]:
        dry_run(recipe)
    else:
        with nodes.lost_contact():
            train(recipe)


if __name__ == "__main__":
    main()
