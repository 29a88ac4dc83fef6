"""Models to evaluate: checked before anything is computed, and known by their content."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from llmshearing.architecture.families import FAMILIES
from llmshearing.errors import InputError
from llmshearing.fileio import digest_of_files
from llmshearing.models.loading import build_on_meta
from llmshearing.reference_loss.evaluate import causal_config, load_model
from llmshearing.tokenizer import model_tokenizer

log = logging.getLogger(__name__)

# What decides a model's answers, by suffix: weights, config, tokenizer.
_SUFFIXES = (".safetensors", ".bin", ".json", ".model", ".txt", ".jinja")
# Our own notes beside a model, which decide nothing.
_NOTES = ("shearing.json", "environment.json")


@dataclass(frozen=True)
class Candidate:
    """A model that can be evaluated.

    Attributes:
        name: Hugging Face folder or hub id.
        config: the model's.
        tokenizer: the model's own.
        identity: digest of the content of its files, or the hub's commit; ``None`` if it cannot be told.
    """

    name: str
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    identity: str | None

    @property
    def num_parameters(self) -> int:
        """Of the model, tied ones once."""
        return sum(parameter.numel() for parameter in build_on_meta(self.config).parameters())

    def load(self, *, dtype: str | None) -> Any:
        """Its weights in eval mode, on the GPU if there is one; see ``load_model``."""
        return load_model(self.name, self.config, dtype=dtype)


def candidates(names: Sequence[str]) -> list[Candidate]:
    """Check models, each once.

    Raises:
        InputError: one cannot be read, has no tokenizer or one of more tokens than its vocabulary, or lacks tensors.
    """
    names = list(dict.fromkeys(names))
    configs = {name: causal_config(name) for name in names}
    tokenizers = {name: _tokenizer(name, configs[name]) for name in names}
    for name in names:
        if Path(name).is_dir():
            _check_weights(Path(name), configs[name])
    return [Candidate(name, configs[name], tokenizers[name], _identity(name, configs[name])) for name in names]


def _tokenizer(name: str, config: PretrainedConfig) -> PreTrainedTokenizerBase:
    tokenizer = model_tokenizer(name)
    vocab_size = config.get_text_config().vocab_size
    if len(tokenizer) > vocab_size:
        raise InputError(
            f"The tokenizer of '{name}' has {len(tokenizer):,} tokens, but its model has {vocab_size:,}. "
            "Use the model's own tokenizer."
        )
    return tokenizer


def _check_weights(folder: Path, config: PretrainedConfig) -> None:
    """Read the heads of safetensors files, which name what they hold and say how long they are."""
    held: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                held |= set(file.keys())
        except SafetensorError as error:
            raise InputError(f"'{path}' is truncated or damaged: {error}. Export or copy it again.") from error
    if not held and not list(folder.glob("*.bin")):
        raise InputError(f"'{folder}' holds no weights. Export or copy the model again.")
    if held and config.model_type in FAMILIES:
        model = build_on_meta(config)
        tied = set(getattr(model, "_tied_weights_keys", None) or ()) if config.tie_word_embeddings else set()
        if lacking := sorted({name for name, _ in model.named_parameters()} - held - tied):
            raise InputError(f"'{folder}' lacks {len(lacking)} tensors, such as '{lacking[0]}'. Export it again.")


def _identity(name: str, config: PretrainedConfig) -> str | None:
    """What a result is kept under: another model in the same place has another."""
    folder = Path(name)
    if not folder.is_dir():
        commit = getattr(config, "_commit_hash", None)
        return f"{name}@{commit}" if commit else None
    files = (path for path in sorted(folder.iterdir()) if path.suffix in _SUFFIXES and path.name not in _NOTES)
    return digest_of_files(path for path in files if path.is_file())


def tokens_by_model(names: Sequence[str], tokens: Sequence[float] | None) -> Mapping[str, float]:
    """Tokens that models were trained on, where they are given.

    Raises:
        InputError: not one for each model, or not above 0.
    """
    if tokens is None:
        return {}
    if len(tokens) != len(names):
        raise InputError(f"--tokens has {len(tokens)} numbers for {len(names)} models; give one for each.")
    for count in tokens:
        if not 0 < count < 1e18:
            raise InputError(f"--tokens has {count}; give numbers above 0, such as 50e9.")
    return dict(zip(names, tokens, strict=True))
