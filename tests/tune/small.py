"""A tiny model with a byte-level tokenizer, chat templates as published models have them, and conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.conftest import REPOSITORY
from tests.models import make_model

# Tokens of the templates below, by which no published tokenizer ends a text.
MARKS = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
VOCAB_SIZE = 400
LLAMA3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + "
    "message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'] | trim + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
ANSWERS = {"Who are you?": "Nobody.", "What is this?": "A licence.", "Say it again.": "A licence, I said."}


def make_tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    """Byte-pair encoding trained on this repository's license."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<s>", "</s>", *MARKS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(REPOSITORY / "LICENSE")], trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    wrapped.add_special_tokens({"additional_special_tokens": MARKS})  # which are in the vocabulary
    wrapped.chat_template = template
    return wrapped


def make_folder(folder: Path, template: str | None = None, **changes: Any) -> str:
    """A model of one seed with its tokenizer."""
    sizes = {"vocab_size": VOCAB_SIZE, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1}
    make_model("llama3", **{**sizes, **changes}).save_pretrained(folder)
    make_tokenizer(template).save_pretrained(folder)
    return str(folder)


def write_chats(path: Path, copies: int = 4) -> str:
    """Each question with its answer, so many times."""
    rows = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in ANSWERS.items()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows * copies))
    return str(path)


def write_prompts(path: Path) -> str:
    """The questions."""
    path.write_text("".join(json.dumps({"prompt": question}) + "\n" for question in ANSWERS))
    return str(path)
