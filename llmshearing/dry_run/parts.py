"""Build a recipe's parts without weights: models on the meta device, data where it is there."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from composer.utils import dist
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from llmshearing.architecture.config import sheared_config
from llmshearing.architecture.families import FAMILIES
from llmshearing.architecture.shapes import ModelShape
from llmshearing.data.cache import DataBytes
from llmshearing.data.callback import DynamicBatchLoading
from llmshearing.data.dataset import DynamicStreamingDataset
from llmshearing.devices import parallelism, samples_per_device
from llmshearing.errors import InputError, one_line
from llmshearing.evaluators import build_recipe_evaluators, eval_folders, updates_proportions
from llmshearing.models.llama import ComposerLlama
from llmshearing.pruning.masked import MaskedModel
from llmshearing.pruning.scores import Scores
from llmshearing.pruning.target import groups_to_prune
from llmshearing.registry import build
from llmshearing.storage import info, is_remote
from llmshearing.teacher import common_vocabulary, load_own_tokenizer
from llmshearing.tokenizer import load_tokenizer

META = torch.device("meta")


@dataclass
class Findings:
    """What was not there to check, and what contradicts itself."""

    absent: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Record bad input as a problem and go on, so that one dry run names them all."""
        try:
            yield
        except InputError as error:
            self.problems.append(one_line(error))

    def refuse(self) -> None:
        """Raise an :class:`InputError` that names every problem, if there are any."""
        if self.problems:
            raise InputError("The recipe cannot run:" + "".join(f"\n  - {problem}" for problem in self.problems))


def build_model(settings: Mapping[str, Any], findings: Findings) -> ComposerLlama:
    """The recipe's model on the meta device.

    Raises:
        InputError: its config is nowhere to be read, or does not fit.
    """
    settings = dict(settings)
    name = settings.pop("name")
    if settings.get("attn_implementation") == "flash_attention_2":
        settings["attn_implementation"] = "sdpa"  # the shapes are the same, and flash-attn need not be here
    pretrained = settings.get("pretrained")
    if isinstance(pretrained, str) and not _is_here(pretrained):
        findings.absent.append(f"model '{pretrained}': shapes are those of model.expected_config")
        if not settings.get("expected_config"):
            raise InputError(f"'{pretrained}' is not here; give its sizes as model.expected_config, or fetch it.")
        settings.update(pretrained=None, config=settings["expected_config"])
    elif isinstance(pretrained, str):
        settings.update(pretrained=None, config=pretrained)
    with META, _quiet():
        return build("model", name, settings, tokenizer=None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing that Composer or the model log of this copy, which is there to be checked and not to be trained."""
    loggers = [logging.getLogger(name) for name in ("composer", "llmshearing.models")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _is_here(model: str) -> bool:
    """A folder, or a hub id whose config is in the local cache."""
    if Path(model).exists():
        return True
    try:
        AutoConfig.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError):
        return False
    return True


def build_target(model: ComposerLlama, target: Mapping[str, int], *, selection: str = "learned") -> ModelShape:
    """Mask the model and build the model that shearing gives, both on the meta device.

    Raises:
        InputError: the masks cannot reach the target.
    """
    config = model.model.config
    source = ModelShape.from_hf_config(config)
    shape, groups = groups_to_prune(source, target, selection=selection)
    MaskedModel(model.model, source, groups, META)
    sheared = sheared_config(config.to_dict(), shape, list(range(shape.num_hidden_layers)))
    with META:
        built = AutoModelForCausalLM.from_config(AutoConfig.for_model(**sheared))
    assert sum(parameter.numel() for parameter in built.parameters()) == shape.num_parameters()
    return shape


def teacher_shape(
    recipe: Mapping[str, Any], model: ModelShape, tokenizer: PreTrainedTokenizerBase | None, findings: Findings
) -> ModelShape | None:
    """The shape of the model that source_distillation asks, if there is one and its config can be read.

    Raises:
        InputError: it has another vocabulary.
    """
    settings = recipe["algorithms"].get("source_distillation")
    teacher = (settings or {}).get("teacher")
    if not isinstance(teacher, str):
        return None
    if not _is_here(teacher):
        findings.absent.append(f"teacher '{teacher}': its memory and compute are not counted")
        return None
    config = AutoConfig.from_pretrained(teacher, local_files_only=True)
    own = load_own_tokenizer(teacher, local=True)
    common_vocabulary(teacher, config.get_text_config().vocab_size, model.vocab_size, own, tokenizer)
    if config.model_type not in FAMILIES:
        findings.absent.append(f"the sizes of a teacher of type '{config.model_type}': its cost is not counted")
        return None
    return ModelShape.from_hf_config(config)


def build_tokenizer(recipe: Mapping[str, Any], findings: Findings) -> PreTrainedTokenizerBase | None:
    """The tokenizer, if it can be read without the network."""
    settings = dict(recipe["tokenizer"])
    if isinstance(options := settings.get("kwargs") or {}, dict):
        settings["kwargs"] = {**options, "local_files_only": True}
    try:
        return load_tokenizer(settings)
    except InputError as error:
        if "There is no tokenizer" not in str(error):
            raise
        findings.absent.append(f"tokenizer '{settings['name']}': the vocabulary is not checked")
        return None


def build_rest(recipe: Mapping[str, Any], model: ComposerLlama, findings: Findings) -> None:
    """Optimizer, scheduler, algorithms, callbacks, loggers and FSDP, each as training builds it."""
    for section, given in (("optimizer", {"params": model.parameters()}), ("scheduler", {})):
        with findings.collect():
            settings = dict(recipe[section])
            build(section, settings.pop("name"), settings, **given)
    for section in ("algorithms", "callbacks", "loggers"):
        for name, settings in recipe[section].items():
            with findings.collect():
                if (path := _absent_file((settings or {}).get("reference_losses"))) is not None:
                    findings.absent.append(f"reference losses '{path}': see python -m llmshearing.reference_loss")
                    settings = {**settings, "reference_losses": {}}
                if (suite := _absent_suite(name, settings)) is not None:
                    findings.absent.append(f"suite '{suite}' of downstream tasks: it is not checked")
                    continue
                part = build(section, name, settings)
                if isinstance(part, DynamicBatchLoading) and path is None and updates_proportions(dict(recipe)):
                    _check_domains(recipe, part)
    with findings.collect():
        parallelism(recipe["fsdp_config"])


def _check_domains(recipe: Mapping[str, Any], loading: DynamicBatchLoading) -> None:
    proportions = (recipe["train_loader"].get("dataset") or {}).get("proportions")
    if isinstance(proportions, Mapping):
        loading.check_domains(list(proportions))


def check_scores(path: Any, source: ModelShape, findings: Findings) -> None:
    """Read the file by which units are chosen, if there is to be one.

    Raises:
        InputError: it is not one of scores, or of a model of another shape.
    """
    if _absent_file(path) is not None:
        findings.absent.append(f"scores '{path}': see python -m llmshearing.score")
    elif isinstance(path, str) and (found := Scores.load(path).source) != source:
        raise InputError(f"The scores in '{path}' are of a model of {found}, this one has {source}.")


def _absent_file(value: Any) -> str | None:
    return value if isinstance(value, str) and info(value) is None else None


def _absent_suite(name: str, settings: Mapping[str, Any] | None) -> str | None:
    """The file, or folder of prepared data, of downstream tasks that is still to be made."""
    suite = (settings or {}).get("suite")
    if name != "downstream_evaluation" or not isinstance(suite, str) or "/" not in suite or is_remote(suite):
        return None
    if Path(suite).exists():
        return None
    return suite


@dataclass(frozen=True)
class Data:
    """What the data folders hold."""

    sequences: dict[str, int]  # of training, by domain
    shares: dict[str, float]  # of the first round
    eval_sequences: int
    eval_bytes: DataBytes
    train: DynamicStreamingDataset


def open_data(recipe: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None, findings: Findings) -> Data | None:
    """Open training and evaluation data as training does; ``None`` where some of it is not here.

    Raises:
        InputError: it does not fit the recipe.
    """
    loader = dict(recipe["train_loader"])
    name, dataset = loader.pop("name"), loader.get("dataset") or {}
    files = [path for key in ("proportions", "start") if (path := _absent_file(dataset.get(key))) is not None]
    absent = [f"'{path}': pruning and `convert shear` write it" for path in dict.fromkeys(files)]
    absent += [
        f"data '{local}': python data_prep/prepare.py writes it"
        for local, remote in ((dataset.get("local"), dataset.get("remote")), *eval_folders(recipe))
        if isinstance(local, str) and remote is None and not Path(local).is_dir()
    ]
    findings.absent += absent
    if absent:
        return None
    batch_size = max(1, samples_per_device(recipe, dist.get_world_size()))
    train = build("train_loader", name, loader, tokenizer=tokenizer, device_batch_size=batch_size).dataloader.dataset
    assert isinstance(train, DynamicStreamingDataset)
    try:
        check_length(train, recipe["max_seq_len"])
        sequences = dict(zip(train.domains, map(int, train.samples_per_stream), strict=True))
        shares = dict(zip(train.domains, train.rounds.at(train.rounds.start).proportions, strict=True))
    finally:
        train.unlink()
    evaluators = build_recipe_evaluators(recipe, sequences, tokenizer)
    evaluation: list[Any] = [each.dataloader.dataloader for each in evaluators]
    eval_bytes = sum((loader.dataset.stored() for loader in evaluation), DataBytes())
    return Data(sequences, shares, sum(len(loader.dataset) for loader in evaluation), eval_bytes, train)


def check_length(dataset: DynamicStreamingDataset, max_seq_len: int) -> None:
    """Refuse data that was prepared for another length.

    Raises:
        InputError: names both.
    """
    if dataset.seq_len not in (None, max_seq_len):
        raise InputError(
            f"The data holds sequences of {dataset.seq_len} tokens, but max_seq_len is {max_seq_len}: make them equal."
        )
