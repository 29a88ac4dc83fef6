"""What a dry run and training both check before any weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from llmshearing.architecture.shapes import ModelShape
from llmshearing.copies import followed
from llmshearing.dry_run import parts, schedule
from llmshearing.dry_run.parts import Findings
from llmshearing.errors import InputError
from llmshearing.run_folder import folder_problem
from llmshearing.storage import files_below, info, is_remote


@dataclass(frozen=True)
class Checked:
    """What the checks found out on their way.

    Args:
        duration: of the run, in batches.
        source: the model that trains.
        target: what it is pruned to, if it is.
        teacher: the model that source_distillation asks, if there is one and it is here.
        tokenizer: if it is here.
        tensors: shapes of the source's tensors, by Hugging Face name.
    """

    duration: float
    source: ModelShape
    target: ModelShape | None
    teacher: ModelShape | None
    tokenizer: PreTrainedTokenizerBase | None
    tensors: dict[str, tuple[int, ...]]


def check(recipe: dict[str, Any], *, num_devices: int, findings: Findings) -> Checked:
    """Build all that a recipe describes but its data, without weights; what is wrong or not here goes to ``findings``.

    Raises:
        InputError: the model or the duration cannot be told, without which little else can.
    """
    duration = schedule.batches(recipe["max_duration"], recipe, "max_duration")
    with findings.collect():
        for problem in schedule.problems(recipe, num_devices=num_devices):
            findings.problems.append(problem)
    if (unwritable := folder_problem(recipe["save_folder"])) is not None:
        findings.problems.append(unwritable)
    if (path := recipe["load_path"]) is not None and not _is_there(path):
        findings.absent.append(f"checkpoint '{path}' of load_path: what it holds is not checked")
    model = parts.build_model(recipe["model"], findings)
    source = ModelShape.from_hf_config(model.model.config)
    assert sum(parameter.numel() for parameter in model.parameters()) == source.num_parameters()
    positions = model.model.config.max_position_embeddings
    if not isinstance(positions, int):
        raise InputError(f"The model's max_position_embeddings is {positions!r}; it must be a whole number.")
    if positions < recipe["max_seq_len"]:
        findings.problems.append(f"max_seq_len is {recipe['max_seq_len']}, but the model has {positions} positions.")
    tensors = {name: tuple(tensor.shape) for name, tensor in model.model.state_dict().items()}
    parts.build_rest(recipe, model, findings)
    tokenizer = target = teacher = None
    with findings.collect():
        tokenizer = parts.build_tokenizer(recipe, findings)
        if tokenizer is not None and len(tokenizer) > source.vocab_size:
            raise InputError(
                f"The tokenizer has {len(tokenizer)} tokens but the model's vocab_size is {source.vocab_size}: use the "
                "model's own."
            )
    if (pruning := recipe["algorithms"].get("targeted_pruning")) is not None:
        with findings.collect():
            target = parts.build_target(
                model, pruning.get("target") or {}, selection=pruning.get("selection", "learned")
            )
        with findings.collect():
            parts.check_scores(pruning.get("scores"), source, findings)
    with findings.collect():
        teacher = parts.teacher_shape(recipe, source, tokenizer, findings)
    return Checked(duration, source, target, teacher, tokenizer, tensors)


def _is_there(path: str) -> bool:
    """Whether a checkpoint is at a path or an address."""
    if not is_remote(path):
        return Path(path).exists()
    place = followed(path)
    return info(place) is not None or bool(files_below(place))
