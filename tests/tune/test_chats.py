"""Conversations as they are written, and lines that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmshearing.errors import InputError
from llmshearing.tune.chats import read_chats, read_prompts


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def said(*turns: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in (turn.split(": ", 1) for turn in turns)]


def test_both_forms_give_the_same_messages_with_their_lines(tmp_path: Path) -> None:
    messages = said("system: Be brief.", "user: Hi", "assistant: Hello", "user: Bye", "assistant: Bye")
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    sharegpt = [{"from": names[message["role"]], "value": message["content"]} for message in messages]
    rows = ({"messages": messages}, "", {"id": "a", "conversations": sharegpt})
    first, second = read_chats(write(tmp_path / "chats", *rows))
    assert list(first.messages) == list(second.messages) == messages
    assert (first.line, second.line) == (1, 3)
    assert list(first.rounds(1).messages) == messages[:3]
    assert first.rounds(7).messages == first.messages


def test_a_question_without_answer_at_the_end_is_dropped(tmp_path: Path) -> None:
    messages = said("user: Hi", "assistant: Hello", "user: Bye")
    (chat,) = read_chats(write(tmp_path / "chats", {"messages": messages}))
    assert list(chat.messages) == messages[:2]


def test_prompts_end_with_a_question(tmp_path: Path) -> None:
    messages = said("user: Hi", "assistant: Hello", "user: Bye")
    prompts = read_prompts(write(tmp_path / "prompts", {"prompt": "Who?"}, {"messages": messages}))
    assert [list(prompt.messages) for prompt in prompts] == [said("user: Who?"), messages]
    with pytest.raises(InputError, match="'.*prompts', line 1: .*the last is of the user"):
        read_prompts(write(tmp_path / "prompts", {"messages": messages[:2]}))


GOOD = {"messages": said("user: Hi", "assistant: Hello")}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: a JSON list and no object.* jq -c"),
        ({"text": "Hi"}, r"line 2: keys \['text'\] and none of 'messages' or 'conversations'"),
        ({"messages": []}, "line 2: no list of messages, or an empty one"),
        ({"messages": ["Hi"]}, "line 2: message 1 has no 'role'"),
        ({"messages": said("user: Hi", "tool: 5")}, "line 2: message 2 is of the unknown role 'tool'. Known: system"),
        ({"conversations": [{"from": "bot", "value": "Hi"}]}, "message 1 is of the unknown role 'bot'. Known: human"),
        ({"messages": [{"role": "user", "content": None}]}, "line 2: message 1 has no text as 'content'"),
        ({"messages": said("user: Hi", "assistant:  \t")}, "line 2: message 2 is an empty answer"),
        ({"messages": said("user:  ", "assistant: Hi")}, "line 2: message 1 is an empty message"),
        ({"messages": said("user: Hi")}, "line 2: roles in the order of no answer"),
        ({"messages": said("assistant: Hi")}, "line 2: roles in the order assistant"),
        ({"messages": said("user: a", "user: b", "assistant: c")}, "line 2: roles in the order user, user, assistant"),
    ],
)
def test_what_is_no_conversation_is_refused_by_its_line(tmp_path: Path, row: Any, message: str) -> None:
    path = write(tmp_path / "chats", GOOD, row)
    with pytest.raises(InputError, match=message) as refused:
        read_chats(path)
    assert str(refused.value).startswith(f"'{path}', line 2: ")
    with pytest.raises(InputError, match="2 more lines are refused"):
        read_chats(write(path, GOOD, row, GOOD, row, row))


def test_files_that_hold_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no file"):
        read_chats(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is empty. Write a conversation a line"):
        read_chats(write(tmp_path / "chats", "", " "))
    (tmp_path / "latin").write_bytes(b'{"prompt": "\xe9"}\n')
    with pytest.raises(InputError, match="is not UTF-8"):
        read_prompts(tmp_path / "latin")
