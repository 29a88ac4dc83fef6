"""A tokenizer of whole words, files of questions, and models with a tokenizer beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llmshearing.downstream import evaluate
from tests.models import SIZES


def words() -> PreTrainedTokenizerFast:
    """Every token is a word of its own, so that text and tokens are the same thing."""
    names = ["<unk>", "<s>", "</s>", *(f"w{number}" for number in range(3, SIZES["vocab_size"]))]
    tokenizer = Tokenizer(
        models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>")  # type: ignore[arg-type]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def save(model: PreTrainedModel, folder: Path) -> str:
    """A model's folder with a tokenizer."""
    model.save_pretrained(folder)
    words().save_pretrained(folder)
    return str(folder)


def write_questions(path: Path, number: int = 12) -> list[dict[str, Any]]:
    """A file of questions that a model answers which has learned to repeat."""
    rows = []
    for place in range(number):
        choices = [f"w{3 + (place + other) % 90}" for other in range(3)]
        rows.append({"context": " ".join([choices[place % 3]] * 9), "choices": choices, "answer": place % 3})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def write_generation(folder: Path) -> Path:
    """A suite of one task that asks for the next word as text: the word that is said again and again."""
    rows = [{"question": " ".join([f"w{3 + place}"] * 9), "word": f"w{3 + place}"} for place in range(7)]
    (folder / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "generated.yaml").write_text(
        f"""
task: next_word
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/words.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: question
doc_to_target: word
generation_kwargs: {{until: [" "], max_gen_toks: 1, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
    )
    suite = folder / "generation.yaml"
    suite.write_text(f"tasks: [{{task: {folder}/generated.yaml, name: next, metric: exact_match}}]")
    return suite


def write_group(folder: Path) -> list[int]:
    """A group ``both`` of two tasks as lm-eval defines them, with examples; how many questions each has."""
    sizes = {"first": 12, "second": 6}
    for name, number in sizes.items():
        write_questions(folder / f"{name}.jsonl", number)
        (folder / f"{name}.yaml").write_text(
            f"""
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{train: {folder}/first.jsonl, test: {folder}/{name}.jsonl}}}}
training_split: train
test_split: test
output_type: multiple_choice
doc_to_text: context
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
        )
    members = "group: both\ntask: [first, second]\n"
    (folder / "both.yaml").write_text(f"{members}aggregate_metric_list: [{{metric: acc, weight_by_size: true}}]\n")
    (folder / "loose.yaml").write_text(members.replace("both", "loose"))
    return list(sizes.values())


class Counted:
    """How many tasks are really evaluated."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails_at: int = -1) -> None:
        self.names: list[str] = []
        real = evaluate.evaluate_task

        def counting(lm: Any, task: Any, **settings: Any) -> Any:
            if len(self.names) == fails_at:
                raise KeyboardInterrupt
            self.names.append(task.name)
            return real(lm, task, **settings)

        monkeypatch.setattr(evaluate, "evaluate_task", counting)
