"""A conversation as token ids, and which of them the loss is on: answers, each with the token that ends it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from llmshearing.errors import InputError
from llmshearing.tune.chats import Chat
from llmshearing.tune.template import Turns, render, special_ids, token_ids

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """What is trained on.

    Attributes:
        line: of the file.
        input_ids: up to the end of the last answer.
        completion_mask: as trl names it, of the same length: 1 where the token is an answer's, or ends one.
    """

    line: int
    input_ids: list[int]
    completion_mask: list[int]


class _LeftOutError(Exception):
    """Why a conversation is not trained on."""


def encode(chat: Chat, tokenizer: PreTrainedTokenizerBase, turns: Turns) -> Example:
    """Ids and mask of a conversation.

    An answer begins where the ids of the prompt end that the model gets when it is asked (``add_generation_prompt``),
    and those ids must be the beginning of the whole: what is learned is what is generated later.
    """
    special = [tokenizer.convert_ids_to_tokens(token) for token in special_ids(tokenizer)]
    if any(mark in message["content"] for message in chat.messages for mark in special):
        raise _LeftOutError("hold the text of a special token")
    whole = token_ids(tokenizer, render(tokenizer, chat.messages, day=turns.day))
    mask = [0] * len(whole)
    for index, message in enumerate(chat.messages):
        if message["role"] != "assistant":
            continue
        asked = token_ids(tokenizer, render(tokenizer, chat.messages[:index], ask=True, day=turns.day))
        stop = len(token_ids(tokenizer, render(tokenizer, chat.messages[: index + 1], day=turns.day)))
        ends = [place for place in range(len(asked), stop) if whole[place : place + 1] == [turns.end]]
        if whole[: len(asked)] != asked or not ends:
            raise _LeftOutError(
                "have an answer whose tokens merge with those of its prompt, or that the template changes"
            )
        mask[len(asked) : ends[0] + 1] = [1] * (ends[0] + 1 - len(asked))
    last = max(place for place, answer in enumerate(mask) if answer) + 1
    return Example(chat.line, whole[:last], mask[:last])


def encode_all(
    chats: Iterable[Chat], tokenizer: PreTrainedTokenizerBase, turns: Turns, *, max_length: int, vocab_size: int
) -> tuple[list[Example], dict[str, int]]:
    """All conversations that can be trained on, in order, and by reason how many cannot; the log says so too.

    Args:
        chats: the conversations.
        tokenizer: from :func:`~llmshearing.tune.template.prepare_tokenizer`.
        turns: of it.
        max_length: in tokens; longer ones are left out whole, since half an answer teaches not to end.
        vocab_size: rows of the model's embedding.

    Raises:
        InputError: none is left, or the tokenizer is not the model's.
    """
    found: list[Example] = []
    first: dict[str, int] = {}
    count: Counter[str] = Counter()
    for chat in chats:
        try:
            example = encode(chat, tokenizer, turns)
            if len(example.input_ids) > max_length:
                raise _LeftOutError(f"are longer than {max_length} tokens (--max-length)")
        except _LeftOutError as error:
            count[str(error)] += 1
            first.setdefault(str(error), chat.line)
            continue
        except InputError as error:  # the template has its own idea of what a conversation is
            raise InputError(f"Line {chat.line}: {error}") from error
        if max(example.input_ids) >= vocab_size:
            raise InputError(
                f"The tokenizer gives token {max(example.input_ids)}, but the model has {vocab_size}. Use the model's "
                "own tokenizer."
            )
        found.append(example)
    total = len(found) + count.total()
    reasons = [f"{number} {reason}, the first in line {first[reason]}" for reason, number in count.items()]
    if not found:
        raise InputError(f"None of {total} conversations can be trained on: {'; '.join(reasons)}.")
    for reason in reasons:
        log.warning("Of %d conversations %s: left out.", total, reason)
    return found, dict(count)
