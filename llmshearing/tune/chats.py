"""Conversations and prompts from JSON lines, in the form of ``messages`` or of ShareGPT's ``conversations``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmshearing.errors import InputError
from llmshearing.fileio import refuse_address

ROLES = ("system", "user", "assistant")
# Names in ShareGPT's dumps for what chat templates call user and assistant.
_SHAREGPT = {"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant"}
_SHAREGPT["system"] = "system"
Message = dict[str, str]


@dataclass(frozen=True)
class Chat:
    """A conversation.

    Attributes:
        line: of the file that it is from, the first is 1.
        messages: with ``role`` and ``content``: one of ``system`` at most, first; then ``user`` and ``assistant`` in
            turns.
    """

    line: int
    messages: tuple[Message, ...]

    def rounds(self, number: int) -> Chat:
        """Its first ``number`` questions with their answers."""
        first = int(self.messages[0]["role"] == "system")
        return Chat(self.line, self.messages[: first + 2 * number])


def read_chats(path: str | Path) -> list[Chat]:
    """The conversations of a file, a JSON object a line; empty lines are passed over.

    What follows the last answer of a conversation is dropped.

    Raises:
        InputError: the file cannot be read, holds none, or has lines that are none: names the first, and how many.
    """
    return _read(path, "a conversation")


def read_prompts(path: str | Path) -> list[Chat]:
    """Conversations that end with a question: ``{"prompt": "..."}``, or ``messages`` of which the last is a user's.

    Raises:
        InputError: as :func:`read_chats`.
    """
    return _read(path, "a prompt")


def _read(path: str | Path, kind: str) -> list[Chat]:
    refuse_address(path, "conversations and prompts are read from a file", "Copy it there, and give the path.")
    found, problems = [], []
    for number, line in _lines(Path(path)):
        try:
            messages = _messages(_object(line), prompt=kind == "a prompt")
        except ValueError as error:
            problems.append(f"'{path}', line {number}: {error}")
        else:
            found.append(Chat(number, tuple(messages)))
    if problems:
        more = f" {len(problems) - 1} more lines are refused." if len(problems) > 1 else ""
        raise InputError(f"{problems[0]}{more}")
    if not found:
        raise InputError(f"'{path}' is empty. Write {kind} a line, as JSON.")
    return found


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except FileNotFoundError as error:
        raise InputError(f"There is no file '{path}'.") from error
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"'{path}' is not UTF-8 text: {error}.") from error


def _object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error}). Write one object a line (of an array: jq -c '.[]').") from error
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {type(value).__name__} and no object. Write one a line (of an array: jq -c '.[]').")
    return value


def _messages(value: dict[str, Any], *, prompt: bool) -> list[Message]:
    """The messages of a line; a ``ValueError`` says what is wrong with them."""
    if prompt and "prompt" in value:
        listed: Any = [{"role": "user", "content": value["prompt"]}]
        role_key, text_key, names = "role", "content", {role: role for role in ROLES}
    elif "messages" in value:
        listed = value["messages"]
        role_key, text_key, names = "role", "content", {role: role for role in ROLES}
    elif "conversations" in value:
        listed = value["conversations"]
        role_key, text_key, names = "from", "value", _SHAREGPT
    else:
        known = "'prompt' or 'messages'" if prompt else "'messages' or 'conversations'"
        raise ValueError(f"keys {sorted(value)} and none of {known}. Give one of them.")
    if not isinstance(listed, list) or not listed:
        raise ValueError("no list of messages, or an empty one. Give a question and an answer at least.")
    messages = [_message(entry, role_key, text_key, names, place) for place, entry in enumerate(listed, start=1)]
    last = "user" if prompt else "assistant"
    if not prompt:
        while messages and messages[-1]["role"] != last:
            messages.pop()
    _check_order(messages, last=last)
    return messages


def _message(entry: Any, role_key: str, text_key: str, names: dict[str, str], place: int) -> Message:
    if not isinstance(entry, dict) or not isinstance(entry.get(role_key), str):
        raise ValueError(f"message {place} has no '{role_key}'. Give each '{role_key}' and '{text_key}'.")
    role, text = entry[role_key], entry.get(text_key)
    if role not in names:
        raise ValueError(f"message {place} is of the unknown role '{role}'. Known: {', '.join(names)}.")
    if not isinstance(text, str):
        raise ValueError(f"message {place} has no text as '{text_key}'. Give one.")
    if not text.strip():
        what = "answer" if names[role] == "assistant" else "message"
        raise ValueError(f"message {place} is an empty {what}. Fill it, or take the conversation out.")
    return {"role": names[role], "content": text}


def _check_order(messages: list[Message], *, last: str) -> None:
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    wanted = ["user", "assistant"] * (len(turns) // 2 + 1)
    if not turns or turns != wanted[: len(turns)] or turns[-1] != last:
        raise ValueError(
            f"roles in the order {', '.join(roles) or 'of no answer'}. After a system message, if any, user and "
            f"assistant take turns, the user first; the last is of the {last}."
        )
