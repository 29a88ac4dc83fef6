"""A folder in which every command works, and copies of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.conftest import REPOSITORY
from tests.dry_runs import make_debug_data
from tests.models import make_model


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, tokenizer, model and files of the wrong kinds. Nobody writes to it."""
    folder = make_debug_data(tmp_path_factory.mktemp("world"))
    model = make_model("llama3", vocab_size=1024, max_position_embeddings=128)
    model.save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(folder / "runs" / "debug" / "tokenizer").save_pretrained(folder / "model")
    (folder / "debug.yaml").write_bytes((REPOSITORY / "yamls" / "debug" / "prune.yaml").read_bytes())
    (folder / "empty").touch()
    (folder / "folder").mkdir()
    (folder / "list.json").write_text("[1]")
    for name, loss in (("nan", float("nan")), ("text", "low")):
        models = [{"model": "m", "num_parameters": size, "losses": {"web": loss}} for size in (10, 100, 1000)]
        (folder / f"{name}.json").write_text(json.dumps({"models": models}))
    _write_chats(folder)
    os.symlink(folder / "runs" / "debug" / "corpus", folder / "corpus")
    return folder


def _write_chats(folder: Path) -> None:
    """Conversations that are good but for their name, and prompts."""
    for name, role, answer in (("chats", "assistant", "Hi"), ("roles", "tool", "Hi"), ("silent", "assistant", " ")):
        first, second = (
            {"messages": [{"role": "user", "content": "Hi"}, {"role": whose, "content": answer}]}
            for whose in ("assistant", role)
        )
        (folder / f"{name}.jsonl").write_text(f"{json.dumps(first)}\n{json.dumps(second)}\n")
    (folder / "prompts.jsonl").write_text('{"prompt": "Hi"}\n')


@pytest.fixture
def place(world: Path, tmp_path: Path) -> Path:
    """A working directory of its own, with links to what is in the world."""
    for path in world.iterdir():
        if path.name != "runs":
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "runs" / "debug").mkdir(parents=True)
    for path in (world / "runs" / "debug").iterdir():
        (tmp_path / "runs" / "debug" / path.name).symlink_to(path)
    return tmp_path
