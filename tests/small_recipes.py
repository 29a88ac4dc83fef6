"""Shipped recipes made small: a tiny model, little text, a few batches."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from transformers import PreTrainedTokenizerFast

from llmshearing.data_prep import debug_corpus, train_tokenizer
from tests.conftest import REPOSITORY
from tests.forkserver import ForkServer
from tests.models import make_model

TARGET = {"num_hidden_layers": 2, "hidden_size": 24, "intermediate_size": 32, "num_attention_heads": 4}
SHORT = {
    "max_seq_len": 64,
    "max_duration": "4ba",
    "eval_interval": "2ba",
    "save_interval": "2ba",
    "global_train_batch_size": 8,
    "train_loader.dataset.update_interval": 2,
    "eval_loader": [
        {"label": domain, "name": "one_domain", "local": f"data/mine/eval/{domain}"} for domain in ("code", "manual")
    ],
}


def make_model_and_text(family: str) -> dict[str, Any]:
    """``model/`` with its tokenizer and ``corpus/`` in the working directory; returns its ``expected_config``."""
    debug_corpus.main(["corpus"])
    train_tokenizer.main(["corpus", "tokenizer", "--vocab-size", "512"])
    model = make_model(family, vocab_size=512)
    model.save_pretrained("model")
    PreTrainedTokenizerFast.from_pretrained("tokenizer").save_pretrained("model")
    return {key: getattr(model.config, key) for key in ("vocab_size", "num_key_value_heads", *TARGET)}


def write_recipe(stage: str, name: str, changes: dict[str, Any]) -> None:
    """``my/<stage>.yaml``: the shipped recipe, shorter and with ``changes``, all of keys that it has."""
    recipe = OmegaConf.load(REPOSITORY / "yamls" / stage / f"{name}.yaml")
    for key, value in {"variables.data": "data/mine", **SHORT, **changes}.items():
        assert OmegaConf.select(recipe, key, throw_on_resolution_failure=False) is not None, key
        OmegaConf.update(recipe, key, value, merge=False)
    Path("my").mkdir(exist_ok=True)
    OmegaConf.save(recipe, f"my/{stage}.yaml")


def smaller_commands(lines: Iterable[str], smaller: Mapping[str, str]) -> list[list[str]]:
    """Shell commands as lists of words, with every key of ``smaller``, all of which must occur, replaced."""
    text = "\n".join(line for line in lines if line.strip())
    for written, replacement in smaller.items():
        assert written in text, written
        text = text.replace(written, replacement)
    return [shlex.split(line) for line in text.splitlines()]


def run_command(words: list[str], forked: ForkServer) -> str:
    """What ``python ...`` or ``composer ...`` prints, with the scripts of this repository."""
    scripts = {"data_prep/prepare.py": str(REPOSITORY / "data_prep" / "prepare.py")}
    command = [scripts.get(word, word) for word in words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = forked.run(command, env=environment, timeout=600)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout
