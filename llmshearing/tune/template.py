"""How a tokenizer writes conversations: the chat template, the token that ends an answer, and the one that pads.

No token is added: a sheared model has exactly the rows that its shape says.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from llmshearing.errors import InputError, one_line
from llmshearing.tune.chats import Message

log = logging.getLogger(__name__)

# The prompt of the instruction-tuned models of Sheared LLaMA (instruction_tuning/prompts/sft_prompt.json in its
# repository), whose first line a system message replaces. More than one round is our continuation of it.
_SHEARED_LLAMA = """{%- if messages[0]['role'] == 'system' -%}
{{ messages[0]['content'] | trim }}
{%- else -%}
You are a helpful assistant. Write a response that appropriately completes the request.
{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{{ '\\n\\n### Input:\\n' + message['content'] | trim + '\\n\\n### Response:' }}
{%- elif message['role'] == 'assistant' -%}
{{ message['content'] | trim + eos_token }}
{%- endif -%}
{%- endfor -%}"""
_CHATML = """{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}"""
TEMPLATES = {"sheared-llama": _SHEARED_LLAMA, "chatml": _CHATML}
_PROBE: tuple[Message, ...] = ({"role": "user", "content": "Hello"}, {"role": "assistant", "content": "World"})


@dataclass(frozen=True)
class Turns:
    """What training needs to know of tokens and template.

    Attributes:
        end: id of the token that ends an answer.
        pad: id of the token that fills up a batch; what it is changes no loss.
        day: what the template is told is today; ``None``: the truth.
    """

    end: int
    pad: int
    day: date | None = None


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str, *, vocab_size: int, template: str | None) -> Turns:
    """Give a tokenizer the chat template that is asked for, and find what ends its answers.

    Args:
        tokenizer: of the model; its ``chat_template`` is replaced where ``template`` is given.
        name: of the model, for messages.
        vocab_size: rows of the model's embedding.
        template: a name of ``TEMPLATES`` or a file with one; ``None``: the tokenizer's own.

    Raises:
        InputError: there is none, it cannot be used, or it ends answers by no token of the model.
    """
    if template is not None:
        if tokenizer.chat_template is not None:
            log.info("The chat template of '%s' is replaced by '%s'.", name, template)
        tokenizer.chat_template = _text(template, tokenizer)
    elif tokenizer.chat_template is None:
        raise InputError(
            f"'{name}' has no chat template. Choose one: --chat-template {' or '.join(sorted(TEMPLATES))}, or a file."
        )
    end = _end_of_turn(tokenizer, name)
    pad = tokenizer.pad_token_id
    if not isinstance(pad, int) or pad >= vocab_size:  # a row that the model does not have
        pad = tokenizer.eos_token_id if isinstance(tokenizer.eos_token_id, int) else end
    if max(end, pad) >= vocab_size:
        raise InputError(
            f"The tokenizer of '{name}' ends answers by token {end}, but the model has {vocab_size}. Choose another "
            "chat template by --chat-template."
        )
    return Turns(end, pad)


def _text(template: str, tokenizer: PreTrainedTokenizerBase) -> str:
    if template not in TEMPLATES:
        try:
            return Path(template).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise InputError(
                f"--chat-template is '{template}', which is none of {', '.join(sorted(TEMPLATES))} and no file that "
                f"can be read: {getattr(error, 'strerror', None) or error}."
            ) from error
    if template == "chatml":
        lacking = [mark for mark in ("<|im_start|>", "<|im_end|>") if mark not in tokenizer.get_vocab()]
        if lacking:
            raise InputError(
                f"--chat-template chatml needs {' and '.join(lacking)} as tokens, which this tokenizer has not. Take "
                "sheared-llama, which needs no tokens of its own."
            )
        return _CHATML
    if tokenizer.eos_token is None:
        raise InputError(f"--chat-template {template} ends answers by the eos token, which this tokenizer has not.")
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return ("{{- bos_token -}}\n" if begins else "") + _SHEARED_LLAMA


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, ask: bool = False, day: date | None = None
) -> str:
    """The text of a conversation; with ``ask``, up to where the model's answer begins; on a ``day``, if not today.

    Raises:
        InputError: the template refuses it.
    """
    told: dict[str, Any] = {} if day is None else {"strftime_now": day.strftime}  # as transformers calls it
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask, **told)
    except Exception as error:  # jinja's, or one that the template raises
        raise InputError(f"The chat template refuses a conversation: {one_line(error)}") from error
    assert isinstance(text, str)
    return text


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of what :func:`render` gave, as ``apply_chat_template`` makes them: it has its special tokens already."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that text does not give but by their names."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def _end_of_turn(tokenizer: PreTrainedTokenizerBase, name: str) -> int:
    asked, whole = render(tokenizer, _PROBE[:1], ask=True), render(tokenizer, _PROBE)
    answer = _PROBE[1]["content"]
    if not whole.startswith(asked) or answer not in whole[len(asked) :]:
        raise InputError(
            f"The chat template of '{name}' writes a question otherwise once it is answered, so that there is no "
            "telling what is the answer. Choose another by --chat-template."
        )
    rest = whole[len(asked) :].split(answer, 1)[1]
    special = special_ids(tokenizer)
    end = next((token for token in token_ids(tokenizer, rest) if token in special), None)
    if end is None:
        raise InputError(
            f"The chat template of '{name}' ends an answer by {rest!r}, which is no special token: generation would "
            "not end. Choose another by --chat-template."
        )
    return end
