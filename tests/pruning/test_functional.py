"""Pruning in a loop of one's own, without Composer, as the method card shows it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import llmshearing
from llmshearing.architecture.config import sheared_config
from llmshearing.errors import InputError
from llmshearing.pruning.functional import Pruning, apply_targeted_pruning
from llmshearing.pruning.shear import Shears, shear_state_dict
from tests.models import SIZES, make_model, token_ids
from tests.training import TARGET


def train(model: torch.nn.Module, pruning: Pruning, *, batches: int) -> list[float]:
    """Train as a user would; returns the losses."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(batches):
        ids = token_ids(batch=4, seed=step)
        pruning.draw(step)
        loss = model(ids, labels=ids).loss
        loss.backward()
        pruning.learn(step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("selection", ["learned", "importance", "random"])
def test_the_sheared_model_is_what_the_loop_ended_with(selection: str) -> None:
    model = make_model("llama3").train()
    pruning = apply_targeted_pruning(model, TARGET, selection=selection, warmup_steps=3, search_steps=None)
    train(model, pruning, batches=9)
    pruning.show(finished=True)
    masks = pruning.masks.final()
    layers = Shears(masks, pruning.source, pruning.target).layers
    config = sheared_config(model.config.to_dict(), pruning.target, layers)
    small = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).eval()
    small.load_state_dict(shear_state_dict(model.state_dict(), masks, pruning.source, pruning.target))
    with torch.no_grad():
        masked, sheared = model.eval()(token_ids()).logits, small(token_ids()).logits
    assert {name: getattr(pruning.target, name) for name in TARGET} == TARGET
    assert (masked - sheared).abs().max() < 1e-5 * sheared.abs().max()


def test_the_loop_of_the_method_card_runs() -> None:
    card = (Path(llmshearing.__file__).parent / "pruning/README.md").read_text()
    (snippet,) = re.findall(r"^Without Composer.*?^```python\n(.*?)^```", card, flags=re.MULTILINE | re.DOTALL)
    model = make_model("qwen3")
    snippet = snippet.replace('layers": 24, "hidden_size": 2048', 'layers": 2, "hidden_size": 24')
    names = {
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-3),
        "batches": [{"input_ids": token_ids(seed=seed), "labels": token_ids(seed=seed)} for seed in range(3)],
    }
    exec(snippet, names)
    assert names["small"]["model.embed_tokens.weight"].shape == (SIZES["vocab_size"], 24)


def test_chosen_units_take_no_gradients_any_more() -> None:
    model = make_model("llama3").train()
    pruning = apply_targeted_pruning(model, TARGET, selection="importance", search_steps=2)
    train(model, pruning, batches=2)
    leaves = pruning.model.leaves.values()
    assert not any(leaf.requires_grad for leaf in leaves)
    ids = token_ids()
    model(ids, labels=ids).loss.backward()
    assert all(leaf.grad is None for leaf in leaves)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_target_that_cannot_be_is_refused_before_the_model_changes() -> None:
    model = make_model("llama3")
    kind = type(model.model.norm)
    with pytest.raises(InputError, match="target.hidden_size is 49"):
        apply_targeted_pruning(model, {"hidden_size": 49})
    assert type(model.model.norm) is kind


def test_composer_is_not_imported() -> None:
    code = "import sys, llmshearing.pruning.functional; sys.exit('composer' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
