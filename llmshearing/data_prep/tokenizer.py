"""Turning text into token ids, with nothing added: no BOS, no EOS, no special tokens found in the text.

Control tokens spelled out in a document ("</s>", "<|endoftext|>") are ordinary text here: a web page must not be able
to end a document. The module is not called ``tokenizers`` because ``python data_prep/prepare.py`` puts this folder in
front of the import path, where it would hide the library of that name.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llmshearing.data_prep.word_cache import Encode, word_cache
from llmshearing.data_prep.word_split import Words, of_sentencepiece, of_tokenizer, without_prefix
from llmshearing.errors import InputError
from llmshearing.models.hub import hub_options

log = logging.getLogger(__name__)

TOKEN_TYPES = ("uint16", "uint32")


class Encoder(Protocol):
    """Encodes batches of texts; picklable, so that worker processes get a copy."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""


class FastEncoder:
    """A Hugging Face fast tokenizer without its Python shell, which would take a worker seconds to import."""

    def __init__(self, serialized: str) -> None:
        import tokenizers

        self._serialized = serialized
        self._backend = tokenizers.Tokenizer.from_str(serialized)
        self._backend.no_truncation()  # a tokenizer.json may carry its trainer's maximum length
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        self._cache = word_cache(lambda: of_tokenizer(serialized), self._word_encoder, self.encode_whole)

    def __reduce__(self) -> tuple[type[FastEncoder], tuple[str]]:
        return FastEncoder, (self._serialized,)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self.encode_whole(texts) if self._cache is None else self._cache.encode(texts)

    def encode_whole(self, texts: Sequence[str]) -> list[list[int]]:
        return [item.ids for item in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _word_encoder(self, words: Words) -> Encode:
        if not words.marked:
            return self.encode_whole
        tokenize = self._backend.model.tokenize  # nothing but the model comes after spaces are written
        return lambda words: [[token.id for token in tokenize(word)] for word in words]


class SlowEncoder:
    """A Hugging Face tokenizer that has no fast version."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) for text in texts]


class SentencePieceEncoder:
    """A sentencepiece model as it is."""

    def __init__(self, model: bytes) -> None:
        import sentencepiece

        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._cache = word_cache(lambda: of_sentencepiece(model), self._word_encoder, self.encode_whole)

    def __reduce__(self) -> tuple[type[SentencePieceEncoder], tuple[bytes]]:
        return SentencePieceEncoder, (self._model,)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self.encode_whole(texts) if self._cache is None else self._cache.encode(texts)

    def encode_whole(self, texts: Sequence[str]) -> list[list[int]]:
        return self._processor.encode(list(texts), num_threads=1)

    def _word_encoder(self, words: Words) -> Encode:
        import sentencepiece

        return functools.partial(
            sentencepiece.SentencePieceProcessor(model_proto=without_prefix(self._model)).encode, num_threads=1
        )


@dataclass(frozen=True)
class Tokenizer:
    """An encoder and what the manifest says about it.

    Attributes:
        name: as the user gave it.
        encoder: text to ids.
        vocab_size: 1 + the largest id it can give.
        bos_id, eos_id: None where the tokenizer has none.
        sha256: of each of its files.
    """

    name: str
    encoder: Encoder
    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    sha256: dict[str, str]

    def token_type(self, wanted: str | None = None) -> str:
        """The type that tokens are stored in: ``wanted``, or the smallest that holds the vocabulary.

        Raises:
            InputError: the vocabulary has ids beyond ``wanted``.
        """
        fitting = [name for name in TOKEN_TYPES if self.vocab_size - 1 <= np.iinfo(name).max]
        if wanted is not None and wanted not in fitting:
            raise InputError(
                f"The vocabulary of '{self.name}' has {self.vocab_size:,} tokens; {wanted} holds ids up to "
                f"{np.iinfo(wanted).max:,}. Use --token-type {fitting[0]}."
            )
        return wanted or fitting[0]


def load_tokenizer(name: str) -> Tokenizer:
    """Load a sentencepiece ``*.model`` file, or a Hugging Face tokenizer from a folder or by hub id.

    Raises:
        InputError: there is none of that name, or it cannot be loaded.
    """
    is_model = name.endswith(".model") and not Path(name).is_dir()
    tokenizer = _load_sentencepiece(name) if is_model else _load_huggingface(name)
    if tokenizer.vocab_size < 1:
        raise InputError(f"The tokenizer '{name}' has no tokens. Give another one.")
    return tokenizer


def _load_sentencepiece(name: str) -> Tokenizer:
    path = Path(name)
    if not path.is_file():
        raise InputError(f"There is no sentencepiece model '{name}'.")
    model = path.read_bytes()
    try:
        if not model:
            raise RuntimeError("it is empty")
        encoder = SentencePieceEncoder(model)
    except (RuntimeError, OSError) as error:
        raise InputError(f"'{name}' is not a sentencepiece model: {_first_line(error)}.") from error
    processor = encoder._processor
    return Tokenizer(
        name=name,
        encoder=encoder,
        vocab_size=processor.get_piece_size(),
        bos_id=processor.bos_id() if processor.bos_id() >= 0 else None,
        eos_id=processor.eos_id() if processor.eos_id() >= 0 else None,
        sha256={path.name: hashlib.sha256(model).hexdigest()},
    )


def _load_huggingface(name: str) -> Tokenizer:
    import transformers

    remedy = "Give a folder with a tokenizer.json, a hub id, or a sentencepiece *.model file."
    path = Path(name)
    is_path = (
        path.exists() or path.is_absolute() or name.startswith(".") or (path.parent != Path() and path.parent.is_dir())
    )
    if is_path and not path.is_dir():
        raise InputError(f"There is no folder '{name}' of a tokenizer. {remedy}")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False, **hub_options(name))
        vocabulary = tokenizer.get_vocab()
    except Exception as error:  # whatever the files make transformers and tokenizers stumble over
        raise InputError(f"No tokenizer can be loaded from '{name}': {_first_line(error)} {remedy}") from error
    encoder: Encoder = (
        FastEncoder(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else SlowEncoder(tokenizer)
    )
    _check_end_of_text(name, tokenizer.eos_token_id)
    return Tokenizer(
        name=name,
        encoder=encoder,
        vocab_size=max(vocabulary.values(), default=-1) + 1,
        bos_id=tokenizer.bos_token_id,
        eos_id=tokenizer.eos_token_id,
        sha256=_file_hashes(name, {"tokenizer.json", "tokenizer_config.json", *tokenizer.vocab_files_names.values()}),
    )


def _first_line(error: Exception) -> str:
    # transformers lists all the models it knows.
    return textwrap.shorten(next(iter(str(error).splitlines()), ""), 200) or type(error).__name__


def _file_hashes(name: str, file_names: set[str]) -> dict[str, str]:
    """SHA-256 of those of ``file_names`` that the tokenizer was loaded from."""
    found = {file_name: _find(name, file_name) for file_name in sorted(file_names)}
    return {file_name: hashlib.sha256(path.read_bytes()).hexdigest() for file_name, path in found.items() if path}


def _find(name: str, file_name: str) -> Path | None:
    """A file in a folder or the hub's local cache."""
    from huggingface_hub import try_to_load_from_cache

    found = Path(name) / file_name if Path(name).is_dir() else try_to_load_from_cache(name, file_name)
    return Path(found) if isinstance(found, str | Path) and Path(found).is_file() else None


def _check_end_of_text(name: str, eos_id: int | None) -> None:
    """Warn where the model beside the tokenizer ends texts by another token: documents would not end as it knows."""
    path = _find(name, "config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path else {}
    except ValueError:  # a tokenizer alone is asked for
        return
    of_model = config.get("eos_token_id") if isinstance(config, dict) else None
    ends = of_model if isinstance(of_model, list) else [of_model]
    if eos_id is not None and of_model is not None and eos_id not in ends:
        log.warning(
            "Documents will end with token %d, the end of text of the tokenizer '%s'; its model's config.json says %s. "
            "Correct eos_token in tokenizer_config.json if the model is right.",
            eos_id,
            name,
            " or ".join(map(str, ends)),
        )
