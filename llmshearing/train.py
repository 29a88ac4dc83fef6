"""Prune or continue pre-training: ``composer [-n N] -m llmshearing.train RECIPE.yaml [key=value ...]``."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from composer import Trainer
from composer.utils import dist, get_device
from composer.utils.parallelism import FSDP2Config
from composer.utils.reproducibility import seed_all
from omegaconf import OmegaConf
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from llmshearing.errors import InputError, cli, unknown_name
from llmshearing.fileio import write_text
from llmshearing.metrics_log import MetricsLog
from llmshearing.recipe import load_recipe
from llmshearing.registry import build
from llmshearing.unfinished import remove_unfinished_checkpoints

log = logging.getLogger(__name__)

# Recipe keys that are the Trainer's own arguments of the same name.
_PASSED_ON = (
    "run_name", "seed", "max_duration", "eval_interval", "compile_config", "save_folder", "save_interval",
    "save_num_checkpoints_to_keep", "save_overwrite", "load_path", "load_weights_only", "autoresume", "device",
    "dist_timeout", "progress_bar", "log_to_console", "console_log_interval",
)  # fmt: skip


def build_trainer(recipe: dict[str, Any]) -> Trainer:
    """Build everything that a recipe describes.

    Args:
        recipe: complete, from :func:`~llmshearing.recipe.load_recipe`.

    Raises:
        InputError: a setting that cannot work, before any training.
    """
    device = get_device(recipe["device"])
    dist.initialize_dist(device, timeout=recipe["dist_timeout"])
    seed_all(recipe["seed"])  # the Trainer does so too, but after random weights have been drawn
    save_folder = Path(recipe["save_folder"])
    if recipe["autoresume"] and dist.get_local_rank() == 0:
        remove_unfinished_checkpoints(save_folder)
    dist.barrier()  # nobody looks for checkpoints before
    device_batch_size = _device_batch_size(recipe["global_train_batch_size"])
    if problem := init_device_problem(recipe, dist.get_world_size()):
        raise InputError(problem)
    tokenizer = load_tokenizer(recipe["tokenizer"], recipe["max_seq_len"])
    model = _build(recipe, "model", tokenizer=tokenizer)
    train_loader = _build(recipe, "train_loader", tokenizer=tokenizer, device_batch_size=device_batch_size)
    evaluators = None
    if recipe["eval_loader"] is not None:
        evaluators = _build(
            recipe,
            "eval_loader",
            domains=train_loader.dataloader.dataset.domains,
            batch_size=recipe["device_eval_batch_size"],
            tokenizer=tokenizer,
        )
    return Trainer(
        model=model,
        train_dataloader=train_loader,
        eval_dataloader=evaluators,
        optimizers=_build(recipe, "optimizer", params=model.parameters()),
        schedulers=_build(recipe, "scheduler"),
        algorithms=_build_all(recipe, "algorithms"),
        callbacks=_build_all(recipe, "callbacks"),
        loggers=[MetricsLog(save_folder.parent), *_build_all(recipe, "loggers")],
        device_train_microbatch_size=_microbatch_size(recipe["device_train_microbatch_size"], device.name),
        parallelism_config=parallelism(recipe["fsdp_config"]),
        precision="fp32" if device.name == "cpu" and recipe["precision"] == "amp_bf16" else recipe["precision"],
        **{key: recipe[key] for key in _PASSED_ON},
    )


def train(recipe: dict[str, Any]) -> None:
    """Build and fit; the run's folder gets the resolved recipe, metrics and checkpoints."""
    trainer = build_trainer(recipe)
    if dist.get_global_rank() == 0:
        write_text(Path(recipe["save_folder"]).parent / "recipe.yaml", OmegaConf.to_yaml(OmegaConf.create(recipe)))
    try:
        with cpu_autocast(recipe["precision"], trainer.state.device.name):
            trainer.fit()
    finally:
        trainer.close()


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


def _device_batch_size(global_batch_size: int) -> int:
    world_size = dist.get_world_size()
    if global_batch_size % world_size:
        raise InputError(
            f"global_train_batch_size is {global_batch_size}, which {world_size} devices cannot share evenly. "
            f"Choose a multiple of {world_size}."
        )
    return global_batch_size // world_size


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
    if _fsdp_version() == "1":
        return f"model.init_device is 'mixed', which needs FSDP2, but FSDP_VERSION is 1. Unset FSDP_VERSION, or {cpu}."
    return None


def _microbatch_size(size: int | str, device: str) -> int | str | None:
    if size == "auto" and device != "gpu":
        log.info("device_train_microbatch_size: auto needs a GPU; the whole batch is one microbatch here.")
        return None
    return size


def load_tokenizer(settings: dict[str, Any], max_seq_len: int) -> PreTrainedTokenizerBase:
    """The tokenizer of a recipe.

    Raises:
        InputError: there is none, or an unknown key.
    """
    if "name" not in settings:
        raise InputError("`tokenizer` needs a `name`: a Hugging Face folder or hub id.")
    options = dict(settings.get("kwargs") or {})
    if unknown := set(settings) - {"name", "kwargs"}:
        raise unknown_name("key in tokenizer", sorted(unknown)[0], ("name", "kwargs"))
    try:
        return AutoTokenizer.from_pretrained(settings["name"], **{"model_max_length": max_seq_len, **options})
    except (OSError, ValueError) as error:
        raise InputError(f"There is no tokenizer at '{settings['name']}': {error}") from error


def _fsdp_version() -> str:
    return os.environ.get("FSDP_VERSION", "2")


def parallelism(fsdp_config: dict[str, Any] | None) -> dict[str, Any] | None:
    """FSDP2 unless the environment says ``FSDP_VERSION=1``.

    Raises:
        InputError: an unknown key.
    """
    if fsdp_config is None:
        return None
    if _fsdp_version() == "1":
        return {"fsdp": dict(fsdp_config)}
    known = FSDP2Config.settable_attrs()
    for key in fsdp_config:
        if key not in known:
            raise unknown_name("key in fsdp_config", key, known)
    return {"fsdp": FSDP2Config(**fsdp_config)}


@cli
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(f"{__doc__}\n")
        raise SystemExit(0 if arguments else 2)
    recipe = load_recipe(arguments[0], arguments[1:])
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("llmshearing").setLevel(recipe["python_log_level"].upper())
    torch.set_flush_denormal(True)  # fp32 steps on the CPU are up to 15 times slower without
    warnings.filterwarnings("ignore", message="The value of the smallest subnormal")  # numpy notices the above
    if recipe["dry_run"]:
        from llmshearing.dry_run.report import dry_run  # which itself builds with this module

        dry_run(recipe)
    else:
        train(recipe)


if __name__ == "__main__":
    main()
