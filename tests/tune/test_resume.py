"""Whose checkpoints a tuning run goes on from: on another day, and of models of the hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from transformers.utils import chat_template_utils

from llmshearing.tune import train
from llmshearing.tune.settings import Settings
from llmshearing.tune.train import tune
from tests.tune.small import LLAMA3, make_folder, write_chats


class Tomorrow(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime.now(tz) + timedelta(days=1)


def test_a_run_whose_template_writes_the_date_goes_on_the_next_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_folder(tmp_path / "model", "{{ strftime_now('%d %b %Y') }}" + LLAMA3)
    chats, settings = write_chats(tmp_path / "chats", 1), Settings(batch_size=3, micro_batch_size=3, epochs=1.0)

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(train, "_trainer", killed)
        with pytest.raises(KeyboardInterrupt):
            tune(model, chats, tmp_path / "out", settings)
    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    tune(model, chats, tmp_path / "out", settings)
    assert json.loads((tmp_path / "out/tuning.json").read_text())["day"] == datetime.now().date().isoformat()


SCRIPT = """
import sys
from llmshearing.errors import InputError
from llmshearing.tune import train
from llmshearing.tune.settings import Settings

def killed(*arguments):
    raise KeyboardInterrupt

chats, out = sys.argv[1:]
train._trainer = killed
for name in ("org/first", "org/second"):
    try:
        train.tune(name, chats, out, Settings())
    except (InputError, KeyboardInterrupt) as error:
        print(name, repr(error))
"""


def test_another_model_of_the_hub_does_not_go_on_from_the_checkpoints_of_the_first(tmp_path: Path) -> None:
    for name in ("first", "second"):
        cached = tmp_path / f"hub/models--org--{name}"
        make_folder(cached / "snapshots/0123", LLAMA3)
        (cached / "refs").mkdir()
        (cached / "refs/main").write_text("0123")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, write_chats(tmp_path / "chats", 1), str(tmp_path / "out")],
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "org/first KeyboardInterrupt()"
    assert "of a run with another weights_digest" in second
