"""Going on with a tuning run on another day."""

from __future__ import annotations

import json
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
