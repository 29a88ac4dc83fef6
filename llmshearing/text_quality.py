"""``python -m llmshearing.text_quality MODEL ... --source SOURCE --data DATA``: what a loss in nats does not say.

Two shares of held-out text, by domain and in the mean, that a person can picture:

agreement
    of the positions at which the model finds the same next token the likeliest as the source does
choices
    of the questions that the model answers: a passage, and four continuations of equal length, the true one and those
    of three other passages of the domain. The likeliest counts as the answer, so chance is a quarter.

Letters: N sequences of a domain, T tokens of a sequence, c of a question's passage, e of its continuations.
"""

from __future__ import annotations

import argparse
import logging
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel

from llmshearing.arguments import whole
from llmshearing.data.prepared import open_split, spread
from llmshearing.errors import InputError, cli
from llmshearing.fileio import give_json
from llmshearing.measuring import parse_measuring
from llmshearing.reference_loss.evaluate import causal_config, check_length, load_model

log = logging.getLogger(__name__)

NUM_CHOICES = 4


def text_quality(
    models: Sequence[str],
    source: str,
    data: str | Path,
    *,
    num_sequences: int | None = None,
    dtype: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Measure models, one in memory at a time.

    Runs on the GPU if there is one.

    Args:
        models: Hugging Face folders or hub ids, of the source's vocabulary.
        source: the model that they are compared with.
        data: folder that ``data_prep/prepare.py`` wrote, or its ``eval`` folder.
        num_sequences: how many of each domain to look at, at equal distances; all if ``None``.
        dtype: of weights and activations; bfloat16 on a GPU and float32 on a CPU unless given.

    Returns:
        By model: ``num_parameters``, ``agreement`` and ``choices``, the latter two by domain and as ``mean``.

    Raises:
        InputError: a model or the data cannot be read, or they do not fit together.
    """
    if num_sequences is not None:
        whole("--sequences", num_sequences, "a question has the continuations of others as choices", least=NUM_CHOICES)
    configs = {name: causal_config(name) for name in (source, *models)}
    texts = {name: config.get_text_config() for name, config in configs.items()}
    vocab_size = min(config.vocab_size for config in texts.values())
    domains = open_split(data, "eval", vocab_size=vocab_size, lazy=True)
    rows = {}
    for domain, dataset in domains.items():
        for config in texts.values():
            check_length(config, dataset.seq_len, domain)
        rows[domain] = torch.cat(list(spread(dataset, len(dataset) if num_sequences is None else num_sequences)))
        if len(rows[domain]) < NUM_CHOICES or rows[domain].shape[1] < 4:
            raise InputError(
                f"Domain '{domain}' holds {len(rows[domain])} sequences of {rows[domain].shape[1]} tokens to evaluate; "
                f"questions need {NUM_CHOICES} sequences of 4 tokens at least. Prepare more with --eval-sequences."
            )
    model = load_model(source, configs[source], dtype=dtype)
    wanted = {domain: read(model, ids, vocab_size)[0] for domain, ids in rows.items()}
    del model  # before the next one is read
    found: dict[str, dict[str, Any]] = {}
    for name in models:
        model = load_model(name, configs[name], dtype=dtype)
        agreement, choices = {}, {}
        for domain, ids in rows.items():
            likeliest, answered = read(model, ids, vocab_size)
            agreement[domain] = (likeliest == wanted[domain]).float().mean().item()
            choices[domain] = answered.float().mean().item()
        found[name] = {
            "num_parameters": model.num_parameters(),
            "agreement": _with_mean(agreement),
            "choices": _with_mean(choices),
        }
        log.info("%s agrees with %s at %.1f%%.", name, source, 100 * found[name]["agreement"]["mean"])
    return found


def questions(ids: Tensor) -> tuple[Tensor, Tensor]:
    """A question of each sequence of a domain, whose other choices are from those that lie farthest from it.

    Args:
        ids: tokens, (N, T), N at least :data:`NUM_CHOICES`.

    Returns:
        Passages (N, c) and continuations (N, choices, e), the true one first: c and e are half of T and a quarter.
    """
    number, length = ids.shape
    passages, continuations = ids[:, : length // 2], ids[:, length // 2 : length // 2 + length // 4]
    away = torch.arange(NUM_CHOICES) * number // NUM_CHOICES  # rows
    others = (torch.arange(number).unsqueeze(-1) + away) % number
    return passages, continuations[others]


@torch.inference_mode()
def read(model: PreTrainedModel, ids: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Read a domain once, and of its questions only the other choices, behind what the passage left in the cache.

    Args:
        model: a causal LM of attention layers, in eval mode.
        ids: tokens, (N, T), as :func:`questions` takes them.
        vocab_size: tokens that may be the likeliest, from 0 on.

    Returns:
        The likeliest next token after each but the last, (N, T - 1), and which questions are answered, (N,) bool: the
        true continuation is likelier than each other.
    """
    passages, continuations = questions(ids)
    start, length = passages.shape[1], continuations.shape[-1]
    likeliest, right = [], []
    for row, choices in zip(ids.to(model.device), continuations.to(model.device), strict=True):
        cache = DynamicCache()
        logits = model(input_ids=row.unsqueeze(0), past_key_values=cache, use_cache=True).logits
        likeliest.append(logits[0, :-1, :vocab_size].argmax(-1).cpu())
        others = choices[1:]
        cache.crop(start)
        cache.batch_repeat_interleave(len(others))
        behind = model(input_ids=others, past_key_values=cache, use_cache=True).logits[:, :-1]
        first = logits[:, start - 1 : start]
        losses = _losses(torch.cat([first.expand(len(others), -1, -1), behind], dim=1), others)
        true = _losses(logits[:, start - 1 : start + length - 1], choices[:1])
        right.append(bool(true[0] < losses.min()))
    return torch.stack(likeliest), torch.tensor(right)


def _losses(logits: Tensor, ids: Tensor) -> Tensor:
    """Of whole continuations in nats, (choices,), from logits (choices, e, V) and tokens (choices, e)."""
    return functional.cross_entropy(logits.float().transpose(1, 2), ids, reduction="none").sum(-1)


def _with_mean(shares: Mapping[str, float]) -> dict[str, float]:
    return {**shares, "mean": statistics.mean(shares.values())}


@cli
def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m llmshearing.text_quality", description=__doc__)
    parser.add_argument("models", metavar="MODEL", nargs="+", help="Hugging Face folders or hub ids")
    parser.add_argument("--source", required=True, help="the model that they come from")
    parser.add_argument("--data", required=True, help="folder that data_prep/prepare.py wrote; its eval split is read")
    parser.add_argument("--sequences", type=int, metavar="N", help="of each domain to look at (default: all)")
    arguments = parse_measuring(parser, argv)
    found = text_quality(
        arguments.models,
        arguments.source,
        arguments.data,
        num_sequences=arguments.sequences,
        dtype=arguments.dtype,
    )
    give_json(arguments.out, found)


if __name__ == "__main__":
    main()
