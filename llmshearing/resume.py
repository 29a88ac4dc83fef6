"""The checkpoint that a run starts from, checked before Composer unpickles it: its code, its model, its run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from composer.core import Time

from llmshearing.convert.checkpoint import Checkpoint
from llmshearing.convert.commands import open_checkpoint
from llmshearing.data.permutation import SUB_STREAMS
from llmshearing.devices import sharded
from llmshearing.errors import InputError
from llmshearing.registry import COMPONENTS, resolve
from llmshearing.unfinished import batch_of, checkpoints, newest_checkpoint

log = logging.getLogger(__name__)

_OPTIMIZER = ("betas", "eps", "weight_decay", "amsgrad")


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Args:
        path: the checkpoint; ``None`` for none.
        weights_only: whether nothing but its weights is taken.
        finished: whether that is the run's own and has all that the recipe asks for.
        saves_generation: whether checkpoints of the run may hold a generation config: what goes on from a sharded one
            must find there all that it saves itself, and those of earlier versions have none.
        has_history: whether the data mix finds losses of earlier rounds there, where it would look for them.
    """

    path: str | None
    weights_only: bool = False
    finished: bool = False
    saves_generation: bool = True
    has_history: bool = True


def find_start(recipe: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Start:
    """Choose and check the checkpoint that a run starts from: its own newest one with ``autoresume``, or ``load_path``.

    Removes what an earlier process of the run did not finish. For one process of a job only.

    Args:
        recipe: complete.
        shapes: of the model's tensors, by Hugging Face name.

    Raises:
        InputError: the checkpoint is damaged, would have to run code to be read, is of another model, or contradicts
            the recipe; or the folder holds checkpoints of another run.
    """
    folder = Path(recipe["save_folder"])
    own = newest_checkpoint(folder) if recipe["autoresume"] else None
    path = str(own) if own is not None else recipe["load_path"]
    if path is None:
        _check_free(folder, recipe, 0)
        return Start(None)
    with open_checkpoint(path) as checkpoint:
        return _check(checkpoint, recipe, shapes, own=own is not None)


def _check(
    checkpoint: Checkpoint, recipe: dict[str, Any], shapes: Mapping[str, tuple[int, ...]], *, own: bool
) -> Start:
    """What a run can begin with at ``checkpoint``, ``own`` or another's. Errors as for :func:`find_start`."""
    folder, path = Path(recipe["save_folder"]), str(checkpoint.path)
    checkpoint.check()
    _check_algorithms(checkpoint)
    _check_form(path, recipe)
    _check_model(checkpoint, shapes, "save_folder" if own else "load_path")
    if not own and recipe["load_weights_only"]:
        _check_free(folder, recipe, 0)
        return Start(path, weights_only=True)
    times = _times(checkpoint)
    if problems := list(_differences(checkpoint, recipe, times)):
        raise InputError(
            f"The run of '{path}' cannot go on with this recipe; change it back, or begin anew in another save_folder "
            "with load_path and load_weights_only=true:" + "".join(f"\n  - {problem}" for problem in problems)
        )
    end = Time.from_timestring(recipe["max_duration"])
    done = times[{"ba": "batch", "sp": "sample", "tok": "token"}[end.unit.value]]
    if done < end.value:
        _check_free(folder, recipe, times["batch"])
        if not Path(path).is_dir():
            return Start(path)
        history = checkpoint.load("callbacks", "DynamicBatchLoading", "history")
        return Start(path, saves_generation=checkpoint.generation() is not None, has_history=history is not None)
    if not own:
        raise InputError(
            f"load_path '{path}' is at {done}{end.unit.value} and max_duration is '{recipe['max_duration']}': nothing "
            "would be trained. Raise max_duration, or set load_weights_only=true to begin anew from its weights."
        )
    return Start(path, finished=True)


def _check_free(folder: Path, recipe: dict[str, Any], batch: int) -> None:
    """Refuse a folder with checkpoints that this run would write again."""
    if recipe["save_overwrite"] or recipe["autoresume"]:
        return  # the latter goes on from the newest one, or there is none
    later = [path for path in checkpoints(folder) if batch_of(path) > batch]
    if later:
        raise InputError(
            f"save_folder '{folder}' holds '{later[0].name}' of another run. Set autoresume=true to go on with that, "
            "save_overwrite=true to write over it, or choose another save_folder."
        )


def _check_algorithms(checkpoint: Checkpoint) -> None:
    """Refuse algorithms that no recipe can name: Composer would evaluate their description as code."""
    known = {what.split(":")[1] for what in COMPONENTS["algorithms"].values()}
    for name in checkpoint.algorithms():
        if name not in known:
            raise InputError(
                f"'{checkpoint.path}' was written with the algorithm {name!r}, which no recipe has. Start from a "
                "Hugging Face folder of its weights instead."
            )


def _check_form(path: str, recipe: dict[str, Any]) -> None:
    folder = sharded(recipe["fsdp_config"])
    if Path(path).is_dir() != folder:
        form, other = ("a folder", "one file") if not folder else ("one file", "a folder, sharded")
        raise InputError(
            f"Checkpoint '{path}' is {form}, but this run's are {other}: set fsdp_config.state_dict_type to "
            f"{'full' if folder else 'sharded'}, as it was."
        )


def _check_model(checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]], key: str) -> None:
    found = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    missing = sorted(set(shapes) - set(found))
    foreign = sorted(set(found) - set(shapes))
    other = sorted(name for name in set(shapes) & set(found) if shapes[name] != found[name])
    if not (missing or foreign or other):
        return
    fitting = len(shapes) - len(missing) - len(other)
    example = next(iter(missing + other + foreign))
    raise InputError(
        f"{key}: {fitting} of the model's {len(shapes)} tensors are in '{checkpoint.path}' in their shape; "
        f"{len(missing)} are missing, {len(other)} have another shape, {len(foreign)} are foreign (such as "
        f"'{example}'). Give a checkpoint of this model."
    )


def _times(checkpoint: Checkpoint) -> dict[str, int]:
    """Batches, samples and tokens that a checkpoint's run has trained on."""
    times = (checkpoint.load("timestamp") or {}).get("Timestamp", {})
    try:
        return {unit: int(times[unit]) for unit in ("batch", "sample", "token")}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"'{checkpoint.path}' does not say how far its run was; set load_weights_only=true."
        ) from error


def _differences(checkpoint: Checkpoint, recipe: dict[str, Any], times: Mapping[str, int]) -> Iterator[str]:
    """What Composer would take from the checkpoint, and ignore in the recipe, although the two differ."""
    batch, sample = times["batch"], times["sample"]
    if sample != batch * recipe["global_train_batch_size"]:
        yield (
            f"global_train_batch_size is {recipe['global_train_batch_size']}, but its {batch} batches had {sample} "
            f"sequences: {sample / max(1, batch):g} each"
        )
    seed = checkpoint.load("rank_zero_seed")
    if seed is not None and seed != recipe["seed"]:
        yield f"seed is {recipe['seed']}, but it was {seed}"
    dataset, saved = recipe["train_loader"].get("dataset") or {}, checkpoint.dataset()
    before = Path(checkpoint.path).is_dir() and saved and "sub_streams" not in saved
    if before and dataset.get("sub_streams", SUB_STREAMS) != 1:
        yield "train_loader.dataset.sub_streams is not 1, as it was: earlier versions knew no other"
    settings = recipe["optimizer"]
    name = resolve("optimizer", settings["name"]).__name__
    groups = checkpoint.load("optimizers", name, "param_groups")
    if not groups:
        yield f"optimizer.name is '{settings['name']}', but it was another"
    for group in groups or ():
        if "lr" in settings and group.get("initial_lr", settings["lr"]) != settings["lr"]:
            yield f"optimizer.lr is {settings['lr']!r}, but it was {group['initial_lr']!r}"
        for key in _OPTIMIZER:
            if key in settings and key in group and _plain(group[key]) != _plain(settings[key]):
                yield f"optimizer.{key} is {settings[key]!r}, but it was {_plain(group[key])!r}"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
