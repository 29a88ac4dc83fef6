"""Which tokens the loss is on, one by one, under templates of published models; and tokenizers that cannot be used."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from llmshearing.errors import InputError
from llmshearing.tune.chats import Chat
from llmshearing.tune.encode import encode, encode_all
from llmshearing.tune.template import TEMPLATES, prepare_tokenizer
from tests.tune.small import LLAMA2, LLAMA3, VOCAB_SIZE, ZEPHYR, make_tokenizer

SHARED = Path(__file__).parents[3] / "shared"
SYSTEM, ASKED, FIRST, AGAIN, SECOND = "Be brief.", "Who is it?", "Nobody at all.", "Are you sure?", "Yes, I am."
CHAT = Chat(
    1,
    tuple(
        {"role": role, "content": text}
        for role, text in (("user", ASKED), ("assistant", FIRST), ("user", AGAIN), ("assistant", SECOND))
    ),
)
PAPER = "You are a helpful assistant. Write a response that appropriately completes the request."
# By template: the text of CHAT, with what the loss is on in the odd places.
WRITTEN = {
    LLAMA3: [
        f"<s><|start_header_id|>user<|end_header_id|>\n\n{ASKED}<|eot_id|><|start_header_id|>assistant"
        "<|end_header_id|>\n\n",
        f"{FIRST}<|eot_id|>",
        f"<|start_header_id|>user<|end_header_id|>\n\n{AGAIN}<|eot_id|><|start_header_id|>assistant"
        "<|end_header_id|>\n\n",
        f"{SECOND}<|eot_id|>",
    ],
    LLAMA2: [f"<s>[INST] {ASKED} [/INST]", f" {FIRST} </s>", f"<s>[INST] {AGAIN} [/INST]", f" {SECOND} </s>"],
    ZEPHYR: [
        f"<|user|>\n{ASKED}</s>\n<|assistant|>\n",
        f"{FIRST}</s>",
        f"\n<|user|>\n{AGAIN}</s>\n<|assistant|>\n",
        f"{SECOND}</s>",
    ],
    "chatml": [
        f"<|im_start|>user\n{ASKED}<|im_end|>\n<|im_start|>assistant\n",
        f"{FIRST}<|im_end|>",
        f"\n<|im_start|>user\n{AGAIN}<|im_end|>\n<|im_start|>assistant\n",
        f"{SECOND}<|im_end|>",
    ],
    "sheared-llama": [
        f"{PAPER}\n\n### Input:\n{ASKED}\n\n### Response:",
        f"{FIRST}</s>",
        f"\n\n### Input:\n{AGAIN}\n\n### Response:",
        f"{SECOND}</s>",
    ],
}


def by_characters(tokenizer: PreTrainedTokenizerBase, parts: list[str]) -> tuple[list[int], list[int]]:
    """Ids and mask from where tokens lie in the text, which is another way than that of ``encode``."""
    text = "".join(parts)
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    answers, place = set(), 0
    for index, part in enumerate(parts):
        if index % 2:
            answers |= set(range(place, place + len(part)))
        place += len(part)
    return found["input_ids"], [int(start in answers) for start, _ in found["offset_mapping"]]


@pytest.mark.parametrize("template", WRITTEN, ids=["llama3", "llama2", "zephyr", "chatml", "sheared-llama"])
def test_the_loss_is_on_answers_and_the_tokens_that_end_them(template: str) -> None:
    named = template in TEMPLATES
    tokenizer = make_tokenizer(None if named else template)
    turns = prepare_tokenizer(tokenizer, "it", vocab_size=VOCAB_SIZE, template=template if named else None)
    ids, mask = by_characters(tokenizer, WRITTEN[template])
    example = encode(CHAT, tokenizer, turns)
    assert example.input_ids == ids
    assert example.completion_mask == mask
    assert 0 < sum(mask) < len(mask)
    ends = [token for token, answer in zip(ids, mask, strict=True) if answer and token == turns.end]
    assert len(ends) == 2
    # What the model is asked with later is exactly what stands before the answer here.
    asked = tokenizer.apply_chat_template(list(CHAT.messages[:3]), add_generation_prompt=True)
    assert ids[: len(asked)] == asked
    assert mask[len(asked) :] == [1] * (len(ids) - len(asked))


@pytest.mark.skipif(not (SHARED / "models/stories260K").is_dir(), reason="no ../shared/models/stories260K")
def test_a_real_sentencepiece_tokenizer_begins_with_its_bos_token() -> None:
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "models/stories260K")
    turns = prepare_tokenizer(tokenizer, "stories", vocab_size=512, template="sheared-llama")
    example = encode(CHAT, tokenizer, turns)
    ids, mask = by_characters(tokenizer, ["<s>" + WRITTEN["sheared-llama"][0], *WRITTEN["sheared-llama"][1:]])
    assert (example.input_ids, example.completion_mask) == (ids, mask)
    assert (turns.end, turns.pad, tokenizer.pad_token) == (2, 2, None)


def test_a_system_message_takes_the_place_of_the_first_line() -> None:
    tokenizer = make_tokenizer()
    turns = prepare_tokenizer(tokenizer, "it", vocab_size=VOCAB_SIZE, template="sheared-llama")
    chat = Chat(1, ({"role": "system", "content": SYSTEM}, *CHAT.messages[:2]))
    parts = [WRITTEN["sheared-llama"][0].replace(PAPER, SYSTEM), f"{FIRST}</s>"]
    example = encode(chat, tokenizer, turns)
    assert (example.input_ids, example.completion_mask) == by_characters(tokenizer, parts)


def chat(question: str, answer: str, line: int = 1) -> Chat:
    return Chat(line, ({"role": "user", "content": question}, {"role": "assistant", "content": answer}))


def test_what_cannot_be_trained_on_is_counted_and_said(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = make_tokenizer()
    turns = prepare_tokenizer(tokenizer, "it", vocab_size=VOCAB_SIZE, template="sheared-llama")
    chats = [
        chat("Hi", "Hello", 1),
        chat("Hi", "Hello " * 90, 2),
        chat("Is <|eot_id|> a token?", "Yes", 3),
        chat("Hi", "a " * 90, 4),
        chat("Hi", "The <s> tag strikes out", 5),
    ]
    with caplog.at_level(logging.WARNING):
        examples, left_out = encode_all(chats, tokenizer, turns, max_length=120, vocab_size=VOCAB_SIZE)
    assert [example.line for example in examples] == [1]
    assert left_out == {"are longer than 120 tokens (--max-length)": 2, "hold the text of a special token": 2}
    assert (
        "Of 5 conversations 2 are longer than 120 tokens (--max-length), the first in line 2: left out." in caplog.text
    )
    assert "Of 5 conversations 2 hold the text of a special token, the first in line 3: left out." in caplog.text
    with pytest.raises(InputError, match="None of 2 conversations can be trained on: 2 are longer"):
        encode_all(chats[1::2], tokenizer, turns, max_length=120, vocab_size=VOCAB_SIZE)
    with pytest.raises(InputError, match="The tokenizer gives token .* but the model has 40"):
        encode_all(chats[:1], tokenizer, turns, max_length=120, vocab_size=40)


def test_a_conversation_that_the_template_refuses_is_named_by_its_line() -> None:
    tokenizer = make_tokenizer(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + ZEPHYR
    )
    turns = prepare_tokenizer(tokenizer, "it", vocab_size=VOCAB_SIZE, template=None)
    refused = Chat(7, ({"role": "system", "content": SYSTEM}, *CHAT.messages[:2]))
    with pytest.raises(InputError, match="Line 7: The chat template refuses a conversation: no system"):
        encode_all([CHAT, refused], tokenizer, turns, max_length=99, vocab_size=VOCAB_SIZE)


def test_an_answer_that_the_prompt_would_swallow_is_left_out() -> None:
    """``licen`` and ``se`` are other tokens than ``license``: such an answer is not what the model is asked for."""
    tokenizer = make_tokenizer(
        "{% for message in messages %}{% if message['role'] == 'user' %}{{ message['content'] }}{% else %}"
        "{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
    )
    turns = prepare_tokenizer(tokenizer, "it", vocab_size=VOCAB_SIZE, template=None)
    kept, merging = chat("License: ", "yes", 1), chat("the Li", "cense", 2)
    examples, left_out = encode_all([kept, merging], tokenizer, turns, max_length=99, vocab_size=VOCAB_SIZE)
    assert [example.line for example in examples] == [1]
    assert list(left_out.values()) == [1]
    assert "merge with those of its prompt" in next(iter(left_out))


@pytest.mark.parametrize(
    ("own", "asked", "message"),
    [
        (None, None, "'it' has no chat template. Choose one: --chat-template chatml or sheared-llama, or a file"),
        (None, "llama9", "--chat-template is 'llama9', which is none of chatml, sheared-llama and no file"),
        ("{{ messages[0]['content'] }}", None, "writes a question otherwise once it is answered"),
        ("{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}", None, "which is no special token"),
        ("{{ raise_exception('no') }}", None, "The chat template refuses a conversation: no"),
        ("{% for %}", None, "The chat template refuses a conversation"),
    ],
)
def test_templates_that_cannot_be_used(own: str | None, asked: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare_tokenizer(make_tokenizer(own), "it", vocab_size=VOCAB_SIZE, template=asked)


def test_a_template_whose_tokens_the_model_lacks_is_refused() -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})  # one more than the model has
    tokenizer.chat_template = ZEPHYR.replace("eos_token", "'<|end|>'")
    with pytest.raises(InputError, match=f"ends answers by token {VOCAB_SIZE}, but the model has {VOCAB_SIZE}"):
        prepare_tokenizer(tokenizer, "it", vocab_size=VOCAB_SIZE, template=None)
    tokenizer = make_tokenizer(LLAMA2)
    tokenizer.pad_token = "<pad>"  # likewise: padding takes a token that is there
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    assert prepare_tokenizer(tokenizer, "it", vocab_size=VOCAB_SIZE, template=None).pad == tokenizer.eos_token_id


def test_chatml_needs_its_tokens_and_a_file_takes_none(tmp_path: Path) -> None:
    if (SHARED / "models/stories260K").is_dir():
        stories = AutoTokenizer.from_pretrained(SHARED / "models/stories260K")
        with pytest.raises(InputError, match=r"chatml needs <\|im_start\|> and <\|im_end\|> as tokens"):
            prepare_tokenizer(stories, "stories", vocab_size=512, template="chatml")
    tokenizer = make_tokenizer(LLAMA3)
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="ends answers by the eos token, which this tokenizer has not"):
        prepare_tokenizer(tokenizer, "it", vocab_size=VOCAB_SIZE, template="sheared-llama")
    (tmp_path / "mine.jinja").write_text(LLAMA2)
    tokenizer = make_tokenizer(LLAMA3)
    prepare_tokenizer(tokenizer, "it", vocab_size=VOCAB_SIZE, template=str(tmp_path / "mine.jinja"))
    assert tokenizer.chat_template == LLAMA2
