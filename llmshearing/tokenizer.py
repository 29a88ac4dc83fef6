"""The tokenizer of a recipe, or of a model."""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from llmshearing.errors import InputError, one_line, unknown_name
from llmshearing.models.hub import hub_options


def load_tokenizer(settings: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Load it.

    Args:
        settings: ``name``, a Hugging Face folder or hub id, and ``kwargs`` for ``AutoTokenizer.from_pretrained``.

    Raises:
        InputError: there is none, it is damaged, or an unknown key.
    """
    for key in settings:
        if key not in ("name", "kwargs"):
            raise unknown_name("key in tokenizer", key, ("name", "kwargs"))
    name, options = settings.get("name"), settings.get("kwargs") or {}
    if not isinstance(name, str) or not name:
        raise InputError(f"tokenizer.name is {name!r}; it must be a Hugging Face folder or hub id.")
    if not isinstance(options, dict):
        raise InputError(f"tokenizer.kwargs is {options!r}; it must be a mapping of AutoTokenizer's arguments.")
    try:
        return AutoTokenizer.from_pretrained(name, **(hub_options(name) | options))
    except (OSError, ValueError) as error:
        raise InputError(f"There is no tokenizer at '{name}': {one_line(error)}") from error
    except Exception as error:  # its files are parsed by many parsers, each with errors of its own
        raise InputError(f"The tokenizer at '{name}' cannot be read: {type(error).__name__}: {error}") from error


def model_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer that lies with a model, a Hugging Face folder or hub id.

    Raises:
        InputError: there is none that can be read.
    """
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False, **hub_options(name))
    except Exception as error:  # its files are parsed by many parsers, each with errors of its own
        said = one_line(error)[:200]
        raise InputError(f"'{name}' has no tokenizer that can be read: {said} Copy its source's there.") from error
