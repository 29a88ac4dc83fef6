"""Look at the model, the data and the machine, plan, and write the recipes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import AutoConfig, PretrainedConfig

from llmshearing.architecture.config import check_prunable
from llmshearing.architecture.shapes import ModelShape
from llmshearing.choose_shape.choose import choose
from llmshearing.choose_shape.rank import target_of
from llmshearing.data.prepared import open_split
from llmshearing.errors import InputError
from llmshearing.fileio import check_file_can_be_written, refuse_address, write_text
from llmshearing.models.config import read_config
from llmshearing.new_recipe.job import Job
from llmshearing.new_recipe.plan import Machine, make_plan
from llmshearing.new_recipe.text import continue_recipe, prune_recipe
from llmshearing.pruning.target import groups_to_prune

log = logging.getLogger(__name__)


def write_recipes(
    model: str,
    out: str | Path,
    *,
    data: str | Path,
    tokens: float,
    parameters: str | None = None,
    target: Mapping[str, int] | None = None,
    run: str | None = None,
    devices: int | None = None,
    gpu_memory: float = 80e9,
    learned: bool | None = None,
    overwrite: bool = False,
) -> Job:
    """Write ``prune.yaml`` and ``continue.yaml``.

    Args:
        model: Hugging Face folder or hub id of the model to shear.
        out: folder for the recipes.
        data: what ``data_prep/prepare.py`` wrote with the model's tokenizer.
        tokens: to train on in all.
        parameters: of the sheared model, such as ``1.3e9``; or ``target``.
        target: sizes by Hugging Face config name.
        run: folder for what the runs write; ``runs/`` and the name of ``out`` if ``None``.
        devices: GPUs to train on, 0 for the CPU; those of this machine if ``None``.
        gpu_memory: bytes of each.
        learned: whether masks are learned; by the budget if ``None``.
        overwrite: replace recipes that are there.

    Returns:
        What was written; :func:`~llmshearing.new_recipe.text.commands` says what to run.

    Raises:
        InputError: the model or data cannot be read or do not fit together; a target that cannot be reached; too few
            tokens; recipes that are there already, or cannot be written.
    """
    for place in (out, run or ""):
        refuse_address(place, "recipes, and what they write, are", "Give a path; save_folder can be changed in them.")
    paths = [Path(out) / f"{stage}.yaml" for stage in ("prune", "continue")]
    for path in paths:
        if path.exists() and not overwrite:
            raise InputError(f"'{path}' exists already. Choose another place, or pass --overwrite to replace it.")
        check_file_can_be_written(path)
    config = read_config(model)
    source = ModelShape.from_hf_config(config)
    if (parameters is None) == (target is None):
        raise InputError("Give either --parameters or --target.")
    if target is None:
        found = choose(model, parameters=parameters, show=1)
        for warning in found["warnings"]:
            log.warning("%s", warning)
        target = found["candidates"][0]["target"]
    selection = "scores" if learned is False else "importance"  # which of them is decided by the budget
    shape, _ = groups_to_prune(source, target, selection=selection)
    check_prunable(config.to_dict(), shape)
    domains = open_split(data, "train", vocab_size=source.vocab_size, lazy=True)
    open_split(data, "eval", vocab_size=source.vocab_size, lazy=True)
    (seq_len,) = _one({domain.seq_len for domain in domains.values()}, data)
    if seq_len > config.max_position_embeddings:
        raise InputError(
            f"'{data}' holds sequences of {seq_len} tokens, but the model takes {config.max_position_embeddings}. "
            f"Prepare the data with --seq-len {config.max_position_embeddings}."
        )
    machine = _machine(devices, gpu_memory)
    plan = make_plan(source, shape, tokens=tokens, seq_len=seq_len, machine=machine, learned=learned)
    if plan.learned:
        groups_to_prune(source, target, selection="learned")
    sequences = {name: len(domain) for name, domain in domains.items()}
    job = Job(
        name=Path(out).resolve().name,
        model=model,
        data=str(data),
        run=run or f"runs/{Path(out).resolve().name}",
        out=str(out),
        source=source,
        target=shape,
        sizes=target_of(source, shape),
        proportions=_shares(sequences),
        seq_len=seq_len,
        positions=config.max_position_embeddings,
        own=own_values(config, source),
        machine=machine,
        plan=plan,
    )
    for path, text in zip(paths, (prune_recipe(job), continue_recipe(job)), strict=True):
        write_text(path, text)
    log.info("%s: %s", out, _explained(job, tokens))
    return job


def own_values(config: PretrainedConfig, shape: ModelShape) -> dict[str, bool | int]:
    """Which biases and norms a model has, and its padding token, where they are not what its family usually has."""
    usual = AutoConfig.for_model(shape.model_type)
    names = {switch for switch in shape.family.switches.values() if isinstance(switch, str)}
    values = {name: bool(getattr(config, name, False)) for name in sorted(names)}
    own: dict[str, bool | int] = {
        name: value for name, value in values.items() if value != bool(getattr(usual, name, False))
    }
    if config.pad_token_id not in (None, usual.pad_token_id):
        own["pad_token_id"] = config.pad_token_id
    return own


def _one(lengths: set[int | None], data: str | Path) -> tuple[int]:
    found = {length for length in lengths if length is not None}
    if len(found) != 1:
        raise InputError(f"'{data}' holds sequences of several lengths. Prepare every domain with one --seq-len.")
    return (found.pop(),)


def _machine(devices: int | None, gpu_memory: float) -> Machine:
    number = torch.cuda.device_count() if devices is None else devices
    if number < 0:
        raise InputError(f"--devices is {devices}; give the number of GPUs, or 0 for the CPU.")
    if number and devices is None:
        gpu_memory = min(torch.cuda.get_device_properties(index).total_memory for index in range(number))
    return Machine(max(1, number), number > 0, gpu_memory)


def _shares(sequences: Mapping[str, int]) -> dict[str, float]:
    """Of each domain, rounded so that they sum to one; a domain has 0.0001 at least."""
    total = sum(sequences.values())
    shares = {name: max(1, round(1e4 * number / total)) for name, number in sequences.items()}
    shares[max(shares, key=lambda name: shares[name])] += 10_000 - sum(shares.values())
    return {name: share / 1e4 for name, share in shares.items()}


def _explained(job: Job, tokens: float) -> str:
    plan, each = job.plan, tokens / job.target.num_parameters()
    how = (
        f"masks are learned for {plan.prune.batches:,} batches"
        if plan.learned
        else "units are chosen by scores, and what is left is fitted and taught by the source"
    )
    return (
        f"from {job.source.num_parameters():,} to {job.target.num_parameters():,} parameters. With {tokens:,.0f} "
        f"tokens, {each:.3g} per parameter of the target, {how}; then {plan.after.batches:,} batches of "
        f"{plan.after.batch_size} sequences of {job.seq_len} tokens."
    )
