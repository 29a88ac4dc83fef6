"""Put together: a budget, the shapes within it, and what is known of each."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from llmshearing.architecture.config import check_prunable, sheared_config
from llmshearing.architecture.shapes import ModelShape
from llmshearing.choose_shape.budget import (
    Budget,
    by_memory,
    by_parameters,
    by_speed,
    cache_bytes,
    read_amount,
    serving_bytes,
)
from llmshearing.choose_shape.candidates import DEPTH, WIDTH, Found, find, stages
from llmshearing.choose_shape.rank import Guess, best_first, fitted_loss, target_of, unevenness
from llmshearing.compute import forward_flops
from llmshearing.errors import InputError
from llmshearing.inference_speed import time_models
from llmshearing.models.config import read_config
from llmshearing.models.loading import DTYPE, default_device
from llmshearing.models.pretrained import load_pretrained
from llmshearing.pruning.scores import Scores
from llmshearing.score import score_loaded

log = logging.getLogger(__name__)


def choose(
    model: str,
    *,
    parameters: str | None = None,
    memory: str | None = None,
    speed: str | None = None,
    like: str | None = None,
    context: int = 2048,
    scores: str | Path | None = None,
    data: str | Path | None = None,
    num_sequences: int = 32,
    best: int = 4,
    show: int = 10,
    timed: bool = False,
) -> dict[str, Any]:
    """Find shapes within a budget and rank them by what the cut costs.

    Args:
        model: Hugging Face folder or hub id, of a supported family.
        parameters: a budget, such as ``1.3e9``; or one of the next three.
        memory: such as ``4GB``.
        speed: such as ``2x``.
        like: Hugging Face folder or hub id of a model of as many parameters.
        context: tokens of a sequence that is served.
        scores: file of the model's scores.
        data: what ``data_prep/prepare.py`` wrote, to fit the ``best`` on; and to score the model, without ``scores``.
        num_sequences: of it.
        best: how many candidates to fit, and to time.
        show: how many to return.
        timed: whether to time generation.

    Returns:
        ``source`` and ``candidates``, the best first: sizes by Hugging Face config name, ``target`` as pruning takes
        it, ``num_parameters``, ``cache_bytes_per_token``, ``serving_bytes``, ``flops_per_token`` in millions, and where
        they are known ``guessed_cost`` in nats, ``fitted_loss``, ``tokens_per_s``; ``budget``; ``stages``, the
        parameters after each step of a plan; ``warnings``.

    Raises:
        InputError: the model, scores or data cannot be read or do not fit together; a budget that is none, too large or
            too small.
    """
    config = read_config(model)
    source = ModelShape.from_hf_config(config)
    budget = _budget(source, parameters, memory, speed, like, context)
    found = find(source, budget)
    known = None if scores is None else _scores_of(scores, source)
    loaded: Any = None
    if data is not None:
        loaded = load_pretrained(model).to(default_device()).eval()  # type: ignore[arg-type]
        if known is None:
            known = score_loaded(loaded, data)
        else:
            known.check_model(source, loaded.get_input_embeddings().weight.detach(), model)
    rows = {shape: _row(source, shape, context) for shape in found.shapes if _has_config(config, shape)}
    if not rows:
        raise InputError("No candidate has a config in the installed transformers. Leave layers or hidden size alone.")
    costs = {shape: unevenness(source, shape) for shape in rows}
    if known is not None:
        guess = Guess(known)
        costs = {shape: guess(shape) for shape in rows}
        for shape, cost in costs.items():
            rows[shape]["guessed_cost"] = cost
    order = best_first(list(rows), costs)
    if loaded is not None and known is not None:
        order = _fit(order, rows, best, loaded, config, known, data=data, num_sequences=num_sequences)
    own = _row(source, source, context)
    if timed:
        _time(config, {source: own, **{shape: rows[shape] for shape in order[:best]}})
    return {
        "model": model,
        "source": own,
        "budget": {"name": budget.name, "wanted": budget.wanted},
        "candidates": [rows[shape] for shape in order[:show]],
        "stages": stages(source, order[0].num_parameters()),
        "warnings": _warnings(source, order[0], budget, found),
    }


def _budget(
    source: ModelShape, parameters: str | None, memory: str | None, speed: str | None, like: str | None, context: int
) -> Budget:
    given = [value for value in (parameters, memory, speed, like) if value is not None]
    if len(given) != 1:
        raise InputError(f"There are {len(given)} budgets; give one of --parameters, --memory, --speed and --like.")
    if parameters is not None:
        return by_parameters(source, read_amount("--parameters", parameters))
    if memory is not None:
        return by_memory(source, read_amount("--memory", memory, suffix="B"), context=context)
    if speed is not None:
        return by_speed(source, read_amount("--speed", speed, suffix="X"), context=context)
    return by_parameters(source, ModelShape.from_hf_config(read_config(cast(str, like))).num_parameters())


def _scores_of(path: str | Path, source: ModelShape) -> Scores:
    found = Scores.load(path)
    if found.source != source:
        raise InputError(f"The scores in '{path}' are of a model of {found.source}, this one has {source}.")
    return found


def _has_config(config: PretrainedConfig, shape: ModelShape) -> bool:
    try:
        check_prunable(config.to_dict(), shape)
    except InputError as error:
        log.debug("%s is left out: %s", shape, error)
        return False
    return True


def _row(source: ModelShape, shape: ModelShape, context: int) -> dict[str, Any]:
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    return {
        **{name: getattr(shape, name) for name in names},
        "target": target_of(source, shape),
        "num_parameters": shape.num_parameters(),
        "cache_bytes_per_token": cache_bytes(shape),
        "serving_bytes": serving_bytes(shape, context=context),
        "flops_per_token": forward_flops(shape, seq_len=context) / 1e6,
    }


def _fit(
    order: Sequence[ModelShape],
    rows: dict[ModelShape, dict[str, Any]],
    best: int,
    loaded: Any,
    config: PretrainedConfig,
    scores: Scores,
    *,
    data: Any,
    num_sequences: int,
) -> list[ModelShape]:
    """Cut and fit the best few: these come first, in order of their losses."""
    state_dict, first = loaded.state_dict(), list(order[:best])
    losses = {}
    for number, shape in enumerate(first, start=1):
        log.info("Candidate %d of %d: %s.", number, len(first), shape)
        losses[shape] = fitted_loss(state_dict, config.to_dict(), scores, shape, data=data, num_sequences=num_sequences)
        rows[shape]["fitted_loss"] = losses[shape]
    return [*best_first(first, losses), *order[len(first) :]]


def _time(config: PretrainedConfig, rows: dict[ModelShape, dict[str, Any]]) -> None:
    """Tokens per second of generation, of random weights: they cost what others do."""
    device = default_device()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    models = {}
    for number, shape in enumerate(rows):
        values = sheared_config(config.to_dict(), shape, range(shape.num_hidden_layers))
        made = cast(Any, AutoModelForCausalLM).from_config(AutoConfig.for_model(**values), **{DTYPE: dtype})
        models[str(number)] = made.to(device).eval()
    for entry in time_models(models, generate=(32,), prompt=32, rounds=3):
        list(rows.values())[int(entry["model"])]["tokens_per_s"] = entry["decode_tokens_per_s"]


def _warnings(source: ModelShape, first: ModelShape, budget: Budget, found: Found) -> list[str]:
    warnings = []
    if not found.within:
        warnings.append(
            f"Sizes go in steps, and no shape is within 2% of {budget.wanted:,.0f} {budget.name}: these are the "
            "nearest below."
        )
    steps = stages(source, first.num_parameters())
    if len(steps) > 1:
        then = " to ".join(f"{number:,}" for number in steps)
        warnings.append(
            f"More than half of the model goes. In steps it costs less: to {then} parameters, with training after each."
        )
    elif not found.capped:
        warnings.append(
            "To reach the budget, more goes of a dimension than training usually repairs: "
            f"{1 - DEPTH:.0%} of the layers and {1 - WIDTH:.0%} of a width."
        )
    return warnings
