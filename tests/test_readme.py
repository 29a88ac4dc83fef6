"""What the README shows is run; what it names exists."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import composer
import pytest
import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.models import HuggingFaceModel
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from llmshearing.convert.commands import shear
from llmshearing.data_prep import debug_corpus, train_tokenizer
from llmshearing.recipe import KEYS
from tests.conftest import REPOSITORY
from tests.training import dataset

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PAGES = sorted([REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")])
SNIPPETS = dict(
    re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
)


def test_every_python_block_is_run_here() -> None:
    assert README.count("```python\n") == len(SNIPPETS) == 2


def test_it_is_added_in_ten_lines() -> None:
    lines = SNIPPETS["Add it to your Composer Trainer"].splitlines()
    assert 5 < sum(bool(line.strip()) for line in lines) <= 10


def test_add_it_to_your_composer_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(Callback):
        """After five batches."""

        def batch_end(self, state: State, logger: Logger) -> None:
            if state.timestamp.batch == 5:
                state.stop_training()

    class ShortTrainer(composer.Trainer):
        """A Trainer that stops early."""

        def __init__(self, *, max_duration: str, **settings: Any) -> None:
            assert max_duration == "3200ba"
            super().__init__(max_duration=max_duration, device="cpu", callbacks=Stop(), progress_bar=False, **settings)

    monkeypatch.setattr(composer, "Trainer", ShortTrainer)
    monkeypatch.chdir(tmp_path)
    # As deep and wide as the snippet's target needs, and small in all else.
    sizes = {"num_hidden_layers": 26, "hidden_size": 2100, "num_attention_heads": 1, "head_dim": 2}
    config = AutoConfig.for_model("llama", **sizes, intermediate_size=4, num_key_value_heads=1, vocab_size=96)
    model = HuggingFaceModel(AutoModelForCausalLM.from_config(config), use_logits=True)
    stand_ins = {
        "model": model,
        "train_dataloader": DataLoader(dataset(sequences=10), batch_size=2),  # type: ignore[arg-type]
        "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-4),
    }
    exec(SNIPPETS["Add it to your Composer Trainer"], stand_ins)
    shear("checkpoints/latest-rank0.pt", "sheared")
    sheared = AutoModelForCausalLM.from_pretrained("sheared")
    assert (sheared.config.num_hidden_layers, sheared.config.hidden_size) == (24, 2048)


def test_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    debug_corpus.main(["corpus"])
    train_tokenizer.main(["corpus", "tokenizer", "--vocab-size", "512"])
    config = AutoConfig.for_model(
        "llama", vocab_size=512, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    AutoModelForCausalLM.from_config(config).save_pretrained("runs/mine/final")
    PreTrainedTokenizerFast.from_pretrained("tokenizer").save_pretrained("runs/mine/final")
    exec(SNIPPETS["Shear your own model"], {})
    assert "Once upon a time" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(((?!http)[^)#]+)(?:#[^)]+)?\)", text)
    for name in links:
        assert (page.parent / name).exists(), name
    for name in re.findall(
        r"(?<![\w./])((?:yamls|data_prep|demo|benchmarks|llmshearing)/[\w./*-]+\.(?:yaml|py|md))", text
    ):
        assert list(REPOSITORY.glob(name)), name
    assert page.name != "README.md" or len(links) > 10


def test_headings_that_are_linked_exist() -> None:
    for page in PAGES:
        for name, anchor in re.findall(r"\]\(((?!http)[^)#]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
            target = (page.parent / name).read_text(encoding="utf-8") if name else page.read_text(encoding="utf-8")
            headings = re.findall(r"^#+ (.*)$", target, re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, anchor


def test_modules_and_functions_that_are_named_exist() -> None:
    modules = set(re.findall(r"-m ((?:llmshearing|demo|benchmarks)[\w.]*)", README))
    assert "llmshearing.convert" in modules
    assert all(importlib.util.find_spec(module) for module in modules)
    functions = re.findall(r"`(llmshearing(?:\.\w+)+)\.(\w+)`", README)
    assert functions
    for module, function in functions:
        assert callable(getattr(importlib.import_module(module), function))


def test_settings_that_are_named_exist() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES if page.stem != "recipe_keys")
    for setting in (
        "device_train_microbatch_size",
        "global_train_batch_size",
        "autoresume",
        "save_interval",
        "dry_run",
    ):
        assert setting in text
        assert setting in KEYS
