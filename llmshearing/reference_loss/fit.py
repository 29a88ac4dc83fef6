"""Scaling-law prediction of a smaller model's loss per domain from the losses of larger ones.

Sheared LLaMA, section 2.2 and appendix "Reference loss predicted by scaling laws", takes
``L(N) = E + A / N**alpha`` per domain (the ``N`` part of Hoffmann et al., 2022, equation 2; the data term is
constant within a model family) and solves it for Llama-2-7B, 13B and 70B.

Use true parameter counts: Llama-2 has 6,738,415,616, 13,015,864,320 and 68,976,648,192. With them the paper's 21
reference losses come out to 4 decimals; with the nominal 7e9, 13e9 and 70e9 they are off by up to 0.13 nats.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmshearing.errors import InputError
from llmshearing.power_law import EXPONENT_RANGE, PowerLaw, fit_power_law
from llmshearing.reference_loss.results import read

log = logging.getLogger(__name__)

UNIT = "nats per token"
MIN_MODELS = 3  # as many as the law has parameters
LARGEST = 1e30  # of a size or a loss; well beyond any


@dataclass(frozen=True)
class ModelLosses:
    """One model's measured losses in nats per token, by domain, and digests of the data where they are known."""

    model: str
    num_parameters: int
    losses: dict[str, float]
    digests: dict[str, str] = field(default_factory=dict)


def _doubts(domain: str, measured: Sequence[ModelLosses], law: PowerLaw) -> list[str]:
    """Why the law of one domain should not be trusted; ``measured`` is sorted by size."""
    doubts = []
    losses = [entry.losses[domain] for entry in measured]
    if any(larger >= smaller for smaller, larger in itertools.pairwise(losses)):
        listed = ", ".join(f"{loss:.4f}" for loss in losses)
        doubts.append(f"{domain}: the losses do not fall with every step in model size ({listed}).")
    if law.irreducible < 0:
        doubts.append(
            f"{domain}: the irreducible loss is negative ({law.irreducible:.4f}), so the law is wrong for large enough "
            "models; it only interpolates and extrapolates nearby sizes."
        )
    if any(math.isclose(law.exponent, end, rel_tol=1e-6) for end in EXPONENT_RANGE):
        doubts.append(
            f"{domain}: the exponent {law.exponent:.4g} lies at the end of its range "
            f"{EXPONENT_RANGE[0]:g} to {EXPONENT_RANGE[1]:g}: these losses do not follow a power law."
        )
    return doubts


def predict(measured: Sequence[ModelLosses], *, num_parameters: int) -> dict[str, Any]:
    """Predict the loss per domain of a model with ``num_parameters`` parameters.

    Degenerate fits are logged as warnings and listed under ``warnings``: as many models as parameters, losses that do
    not fall with size, a negative irreducible loss, an exponent at the end of its range.

    Returns:
        The reference-loss JSON, with each domain's law under ``fit``.

    Raises:
        InputError: fewer than three distinct sizes, no or differing domains, a size out of range, or a law that gives
            no positive loss.
    """
    if not 0 < num_parameters <= LARGEST:
        raise InputError(f"--num-parameters {num_parameters} must be a positive number of at most {LARGEST:.0e}.")
    distinct = len({entry.num_parameters for entry in measured})
    if distinct < MIN_MODELS:
        raise InputError(
            f"The scaling law has {MIN_MODELS} parameters per domain and needs models of at least that many sizes; "
            f"got {distinct}. Add the losses of larger or smaller models of the same family."
        )
    measured = sorted(measured, key=lambda entry: entry.num_parameters)
    domains = list(measured[0].losses)
    if not domains:
        raise InputError(f"'{measured[0].model}' has no losses. Give the losses of its domains.")
    for entry in measured[1:]:
        if set(entry.losses) != set(domains):
            raise InputError(
                f"'{entry.model}' has the domains {sorted(entry.losses)}, '{measured[0].model}' has {sorted(domains)}. "
                "Evaluate all models on the same data."
            )
    for domain in domains:
        if len({entry.digests[domain] for entry in measured if domain in entry.digests}) > 1:
            raise InputError(
                f"The losses of domain '{domain}' are of different data. Evaluate all models on the same data."
            )
    warnings = []
    if len(measured) == MIN_MODELS:
        warnings.append("Three models for three parameters: nothing is left over to tell how far the law is off.")
    laws = {}
    for domain in domains:
        laws[domain] = fit_power_law(
            [entry.num_parameters for entry in measured], [entry.losses[domain] for entry in measured]
        )
        if not 0 < (loss := laws[domain](num_parameters)) < math.inf:  # nan is neither
            listed = ", ".join(str(entry.losses[domain]) for entry in measured)
            raise InputError(
                f"The losses of domain '{domain}' ({listed}) give {loss} nats at {num_parameters} parameters, which is "
                "no loss. Check them, or predict a nearer size."
            )
        warnings += _doubts(domain, measured, laws[domain])
    for warning in warnings:
        log.warning("%s", warning)
    return {
        "unit": UNIT,
        "model": "scaling law over " + ", ".join(entry.model for entry in measured),
        "num_parameters": num_parameters,
        "losses": {domain: law(num_parameters) for domain, law in laws.items()},
        "fit": {domain: vars(law) for domain, law in laws.items()},
        "fitted_to": [vars(entry) for entry in measured],
        "warnings": warnings,
    }


def read_losses(paths: Sequence[str | Path]) -> list[ModelLosses]:
    """Read measured losses from files that hold one ``eval`` output, a list of them, or ``{"models": [...]}``.

    Raises:
        InputError: a file is missing or malformed, an entry lacks a key, or a value is not a positive number.
    """
    measured = []
    for path in paths:
        content = read(path)
        if isinstance(content, dict):
            content = content.get("models", [content])
        if not isinstance(content, list):
            raise InputError(
                f"'{path}' holds neither the output of `eval`, nor a list of them, nor {{'models': [...]}}."
            )
        measured += [_model_losses(entry, path) for entry in content]
    return measured


def _model_losses(entry: Any, path: str | Path) -> ModelLosses:
    if not isinstance(entry, dict) or not isinstance(entry.get("losses"), dict) or "num_parameters" not in entry:
        raise InputError(f"'{path}': each model needs 'num_parameters' and 'losses': {{domain: nats per token}}.")
    name = str(entry.get("model", f"{entry['num_parameters']} parameters"))
    if entry.get("unit", UNIT) != UNIT:
        raise InputError(f"'{path}': the losses of '{name}' are in '{entry['unit']}'; they must be in {UNIT}.")
    for key, value in {"num_parameters": entry["num_parameters"], **entry["losses"]}.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= LARGEST:
            raise InputError(f"'{path}': '{key}' of '{name}' must be a positive number, not {value!r}.")
    if entry["num_parameters"] < 1:
        raise InputError(f"'{path}': 'num_parameters' of '{name}' must be at least 1, not {entry['num_parameters']!r}.")
    losses = {str(domain): float(loss) for domain, loss in entry["losses"].items()}
    digests = entry.get("digests")
    return ModelLosses(name, int(entry["num_parameters"]), losses, digests if isinstance(digests, dict) else {})
