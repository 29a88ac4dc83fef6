"""Tasks of this machine's files as lm-eval's task configs: nothing of them needs a network.

Of a sequence of held-out text, T tokens, its first three quarters make a question: the ``choices`` are those of
:func:`llmshearing.text_quality.questions`, and a ``completion`` is the last whole word.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llmshearing.copies import parent_of
from llmshearing.data.prepared import MANIFEST, open_split, spread
from llmshearing.downstream.suites import Entry
from llmshearing.errors import InputError, unknown_name
from llmshearing.fileio import read_json
from llmshearing.storage import info, join
from llmshearing.text_quality import NUM_CHOICES, questions

log = logging.getLogger(__name__)

_LEAST = 4  # tokens of a sequence: a question's passage and its continuations have one at least
_METRICS = {
    "choices": [{"metric": "acc", "aggregation": "mean"}, {"metric": "acc_norm", "aggregation": "mean"}],
    "completion": [{"metric": "acc", "aggregation": "mean"}, {"metric": "perplexity", "aggregation": "perplexity"}],
}


def task_config(
    name: str, rows: Sequence[Mapping[str, Any]], *, kind: str, shots: int = 0, delimiter: str
) -> dict[str, Any]:
    """A config of lm-eval over rows in memory.

    Args:
        name: of the task.
        rows: ``context``, ``choices`` and ``answer``, the place of the true one; or ``context`` and ``completion``.
        kind: ``choices`` or ``completion``.
        shots: other rows of these before each.
        delimiter: between a context and what follows it.
    """

    def load(**_: Any) -> Any:
        import datasets

        return datasets.DatasetDict({"test": datasets.Dataset.from_list([dict(row) for row in rows])})

    target = {"doc_to_choice": "choices", "doc_to_target": "answer"}
    return {
        "task": name,
        "custom_dataset": load,
        "test_split": "test",
        "output_type": "multiple_choice" if kind == "choices" else "loglikelihood",
        "doc_to_text": "context",
        **(target if kind == "choices" else {"doc_to_target": "completion"}),
        **({"fewshot_split": "test"} if shots else {}),
        "num_fewshot": shots,
        "target_delimiter": delimiter,
        "metric_list": [{**metric, "higher_is_better": metric["metric"] != "perplexity"} for metric in _METRICS[kind]],
        "metadata": {"version": 1},
    }


def rows_of_file(path: str, kind: str) -> list[dict[str, Any]]:
    """The questions in a JSON list, or of JSON lines.

    Raises:
        InputError: there are none, or one has another form; names its place.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        found = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in _lines(text)]
    except FileNotFoundError as error:
        raise InputError(f"There is no file '{path}' of questions.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"'{path}' is neither a JSON list nor JSON lines: {error}.") from error
    if not found:
        raise InputError(f"'{path}' holds no question. Give a file that has some.")
    keys = ("context", "choices", "answer") if kind == "choices" else ("context", "completion")
    rows = []
    for number, row in enumerate(found, start=1):
        if (problem := _problem(row, keys)) is not None:
            raise InputError(f"Question {number} of '{path}', kind '{kind}': {problem}.")
        rows.append({key: row[key] for key in keys})
    return rows


def _lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if line.strip()]  # splitlines would cut within texts, as at U+2028


def _problem(row: Any, keys: Sequence[str]) -> str | None:
    """What a question lacks."""
    if not isinstance(row, dict):
        return f"it is {row!r}; it must be a mapping with {', '.join(keys)}"
    for key in keys:
        if key not in row:
            return f"it has no '{key}'"
    for key in ("context", "completion"):
        if key in keys and not (isinstance(row[key], str) and row[key].strip()):
            return f"'{key}' is {row[key]!r}; it must be text"
    if "choices" in keys:
        choices, answer = row["choices"], row["answer"]
        if not (isinstance(choices, list) and len(choices) > 1 and all(isinstance(c, str) and c for c in choices)):
            return f"'choices' is {choices!r}; it must be a list of two texts or more"
        if type(answer) is not int or not 0 <= answer < len(choices):
            return f"'answer' is {answer!r}; it must be the place of the true choice, from 0 to {len(choices) - 1}"
    return None


def rows_of_data(entry: Entry, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[dict[str, Any]]]:
    """Questions of each domain of prepared data.

    Args:
        entry: one with ``data``.
        tokenizer: that of the data.

    Raises:
        InputError: the data cannot be read, is of another vocabulary, or makes no questions.
    """
    assert entry.data is not None
    size = len(tokenizer)
    _check_vocabulary(entry.data, tokenizer)
    domains = open_split(entry.data, "eval", vocab_size=size, lazy=True)
    for domain in entry.domains:
        if domain not in domains:
            raise unknown_name(f"domain of '{entry.data}'", domain, domains)
    found = {}
    for domain, dataset in domains.items():
        if entry.domains and domain not in entry.domains:
            continue
        number = len(dataset) if entry.sequences is None else entry.sequences
        ids = torch.cat(list(spread(dataset, number)))
        if len(ids) < NUM_CHOICES or ids.shape[1] < _LEAST:
            raise InputError(
                f"Domain '{domain}' of '{entry.data}' gives {len(ids)} sequences of {ids.shape[1]} tokens; questions "
                f"need {NUM_CHOICES} of {_LEAST} at least. Take more, or prepare more with --eval-sequences."
            )
        make = choices_of if entry.kind == "choices" else completions_of
        rows = make(ids, tokenizer)
        if len(rows) < len(ids):
            log.info("%s of '%s': %d of %d sequences make a question.", entry.kind, domain, len(rows), len(ids))
        if not rows:
            raise InputError(
                f"No sequence of domain '{domain}' of '{entry.data}' makes a question of kind '{entry.kind}': its "
                "tokens cannot be cut into whole text. Leave the domain out with `domains`, or take the other kind."
            )
        found[domain] = rows
    return found


def _check_vocabulary(data: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer of another size than the one that the data was prepared with, where its manifest is here."""
    paths = (join(data, MANIFEST), join(parent_of(data) or ".", MANIFEST))
    manifest: Any = next((read_json(path) for path in paths if info(path) is not None), {})
    recorded = (manifest.get("tokenizer") if isinstance(manifest, dict) else None) or {}
    size = max(tokenizer.get_vocab().values(), default=-1) + 1
    if recorded.get("vocab_size", size) != size:
        raise InputError(
            f"'{data}' was prepared with a tokenizer of {recorded['vocab_size']:,} tokens ('{recorded.get('name')}'), "
            f"but that of '{tokenizer.name_or_path}' has {size:,}. Name a model of the data's vocabulary first."
        )


def choices_of(ids: Tensor, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Questions with four choices of tokens (N, T); the true one is at each place equally often.

    A question whose text cannot be cut where its tokens are, within a character of several, is left out.
    """
    passages, continuations = questions(ids)
    rows = []
    for number, (passage, choices) in enumerate(zip(passages.tolist(), continuations.tolist(), strict=True)):
        texts = [_behind(passage, choice, tokenizer) for choice in choices]
        if all(texts) and len(set(texts)) == len(texts):
            answer = number % NUM_CHOICES
            texts[0], texts[answer] = texts[answer], texts[0]
            rows.append({"context": _text(passage, tokenizer), "choices": texts, "answer": answer})
    return rows


def completions_of(ids: Tensor, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """The last whole word of three quarters of each sequence of tokens (N, T), as in LAMBADA; none without spaces."""
    rows = []
    for row in ids[:, : ids.shape[1] * 3 // 4].tolist():
        parts = _text(row, tokenizer).rsplit(" ", 2)  # the last one may be half a word
        if len(parts) == 3 and parts[0].strip() and parts[1].strip():
            rows.append({"context": parts[0], "completion": f" {parts[1]}"})
    return rows


def _text(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _behind(passage: list[int], choice: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of a choice behind its passage, since tokenizers write a text's first token otherwise."""
    before, whole = _text(passage, tokenizer), _text([*passage, *choice], tokenizer)
    fits = before.strip() and whole.startswith(before) and "\ufffd" not in whole
    return whole[len(before) :] if fits else ""
