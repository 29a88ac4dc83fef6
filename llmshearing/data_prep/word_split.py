"""Where a text can be cut so that its words, encoded one by one, give the ids of the whole text.

Two kinds of tokenizers have such places, and each is recognised by what it is made of, not by its name:

- BPE on text whose spaces are written as "▁" (LLaMA, Mistral, Gemma, sentencepiece models). Merging starts from
  characters and makes only pieces of the vocabulary: two characters that no piece has side by side are never joined,
  and what is merged on one side of them does not depend on the other.
- Any model behind one of the usual pre-tokenizers of byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM2), which cuts at
  these spaces itself, whatever comes before and after.
"""

from __future__ import annotations

import itertools
import json
import re
import string
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, cast

SPACE = "▁"

#: Of the last whitespace in front of a word, what byte-level pre-tokenizers give to the word: a space, where the
#: character before it is none or the one after it an ASCII character that is neither a digit nor whitespace (a digit
#: may be cut off from its space, which then belongs to the whitespace before it). Not more of whitespace: how much of
#: a run goes where depends on what follows. Python's \s has all that theirs has, so that \S is safe.
BYTE_LEVEL_WORDS = r" ?[^ ]*(?: (?:(?!\S)|(?<=\s )(?![!-/:-~]))[^ ]*)*"
# Regular expressions of pre-tokenizers for which that holds. In all of them whitespace ends a match, but for newlines
# behind punctuation; a space can begin one; and \s+(?!\S) leaves the last character of a run to what follows.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_OURS = f"{SPACE}*[^{SPACE}]+|{SPACE}+"  # of data_prep.train_tokenizer


class WholeTextsError(Exception):
    """Why a tokenizer's texts are not cut."""


@dataclass(frozen=True)
class Words:
    """How to cut the texts of one tokenizer.

    Attributes:
        pattern: matches word after word, all of a text. Every word begins with its spaces.
        prefix: whether a space is put in front of a text: ``always`` if it has any character, ``missing`` only if it
            does not begin with one.
        marked: spaces are written as "▁" for the model, and the two are the same in a text.
        whole: texts that have one of these in them are not to be cut.
    """

    pattern: re.Pattern[str]
    prefix: Literal["always", "missing", "never"]
    marked: bool
    whole: tuple[str, ...] = ()


def of_sentencepiece(model: bytes) -> Words:
    """The words of a sentencepiece model.

    Raises:
        WholeTextsError: it cannot be shown that there are any.
    """
    proto = _parsed(model)
    normalizer, kind = proto.normalizer_spec, proto.SentencePiece
    _require(proto.trainer_spec.model_type == proto.trainer_spec.BPE, "it is not of kind BPE")
    _require(not normalizer.precompiled_charsmap, f"it changes characters ({normalizer.name})")
    _require(not normalizer.remove_extra_whitespaces, "it removes spaces")
    _require(normalizer.escape_whitespaces and not proto.trainer_spec.treat_whitespace_as_suffix, "its spaces differ")
    _require(sum(piece.type == kind.BYTE for piece in proto.pieces) == 256, "it has no byte for what it does not know")
    merged = (kind.NORMAL, kind.USER_DEFINED, kind.UNUSED)
    pattern = _pattern([piece.piece for piece in proto.pieces if piece.type in merged])
    return Words(pattern, "always" if normalizer.add_dummy_prefix else "never", marked=True)


def without_prefix(model: bytes) -> bytes:
    """The same sentencepiece model, which puts no space in front of a text."""
    proto = _parsed(model)
    proto.normalizer_spec.add_dummy_prefix = False
    return proto.SerializeToString()


def of_tokenizer(serialized: str) -> Words:
    """The words of a ``tokenizer.json``.

    Raises:
        WholeTextsError: it cannot be shown that there are any.
    """
    settings = json.loads(serialized)
    model = settings["model"]
    _require(model["type"] == "BPE" and not model["dropout"], "its model is not plain BPE")
    before = [_plain(step) for step in _steps(settings["normalizer"], "normalizers")]
    cuts = [_plain(step) for step in _steps(settings["pre_tokenizer"], "pretokenizers")]
    found = [token["content"] for token in settings["added_tokens"] if not token["special"]]
    if cuts and cuts[-1]["type"] == "ByteLevel":
        _require(before in ([], [{"type": "NFC"}]), "its normalizer is unknown")  # NFC joins nothing to a space
        _check_byte_level(cuts)
        words = Words(re.compile(BYTE_LEVEL_WORDS), "never", marked=False, whole=tuple(found))
    else:
        _require(not any(model[key] for key in ("continuing_subword_prefix", "end_of_word_suffix")), "words have marks")
        _require(not model["ignore_merges"], "it looks up words")
        known = all(f"<0x{byte:02X}>" in model["vocab"] for byte in range(256))
        _require(model["byte_fallback"] and known, "it has no byte for what it does not know")
        prefix = _prefix(before, cuts)
        words = Words(_pattern(["".join(pair) for pair in model["merges"]]), prefix, marked=True, whole=tuple(found))
    changed = any(token["normalized"] and not token["special"] for token in settings["added_tokens"])
    _require(not (changed and before), "its added tokens are looked for in text that is normalized")
    return words


def _parsed(model: bytes) -> Any:
    try:
        from sentencepiece import sentencepiece_model_pb2 as generated
    except Exception as error:  # protobuf has errors of its own for code that was generated for another version of it
        raise WholeTextsError(f"protobuf cannot read it ({error})") from error
    return cast(Any, generated).ModelProto.FromString(model)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise WholeTextsError(otherwise)


def _steps(component: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if component is None:
        return []
    if component["type"] == "Sequence":
        return [step for part in component[key] for step in _steps(part, key)]
    return [component]


def _plain(step: dict[str, Any]) -> dict[str, Any]:
    """Without what changes offsets only."""
    return {key: value for key, value in step.items() if key != "trim_offsets"}


def _check_byte_level(cuts: list[dict[str, Any]]) -> None:
    def split(expression: str) -> dict[str, Any]:
        return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}

    *first, last = cuts
    _require(not last["add_prefix_space"], "it puts a space in front")
    if last["use_regex"]:
        _require(all(step["type"] == "Digits" for step in first), "its pre-tokenizer is unknown")
    else:
        _require(first in ([split(_LLAMA3)], [split(_QWEN2)]), "its pre-tokenizer is unknown")


def _prefix(before: list[dict[str, Any]], cuts: list[dict[str, Any]]) -> Literal["always", "missing", "never"]:
    """Which of the ways to write spaces as "▁" it is."""
    prepend = {"type": "Prepend", "prepend": SPACE}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    ours = {"type": "Split", "pattern": {"Regex": _OURS}, "behavior": "Isolated", "invert": False}
    gemmas = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    if not before and len(cuts) == 1 and cuts[0]["type"] == "Metaspace":
        (step,) = cuts
        _require(step["replacement"] == SPACE and not step["split"], "its pre-tokenizer is unknown")
        return "never" if step["prepend_scheme"] == "never" else "missing"
    _require(cuts in ([], [ours], [gemmas]), "its pre-tokenizer is unknown")
    _require(before in ([replace], [prepend, replace]), "its normalizer is unknown")
    return "always" if prepend in before else "never"


def _pattern(pieces: Iterable[str]) -> re.Pattern[str]:
    """Words that no piece reaches beyond: spaces, and then characters that pieces may join.

    Cut are a character from a space behind it; and letters, digits, punctuation and newlines from each other, each with
    what pieces join to them, as far as pieces keep them apart. The more is cut, the fewer words there are to know.

    Raises:
        WholeTextsError: a piece has a space behind another character.
    """
    neighbours = defaultdict(set)
    for left, right in set(itertools.chain.from_iterable(map(itertools.pairwise, pieces))):
        _require(left == SPACE or right != SPACE, f"pieces such as '…{left}{right}…' reach beyond a space")
        if left != SPACE:
            neighbours[left].add(right)
            neighbours[right].add(left)
    groups: list[set[str]] = []
    for characters in (string.punctuation, string.digits, "\n"):
        group, found = set[str](), set(characters)
        while found:
            group |= found
            found = {near for character in found for near in neighbours[character]} - group
        for other in [other for other in groups if other & group]:
            groups.remove(other)
            group |= other
        groups.append(group)
    apart = ["".join(map(re.escape, sorted(group))) for group in groups if not group & set(string.ascii_letters)]
    runs = [f"[^ {''.join(apart)}]+", *(f"[{group}]+" for group in apart)]
    return re.compile(f" *(?:{'|'.join(runs)})| +")
