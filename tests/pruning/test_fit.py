"""Kept weights fitted to the source: nearer to it, exact where nothing is missing, and the same each time."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from llmshearing.architecture.config import sheared_config
from llmshearing.architecture.shapes import ModelShape
from llmshearing.errors import InputError
from llmshearing.pruning.fit import HeldOut, Reconstruction
from llmshearing.pruning.functional import apply_targeted_pruning
from llmshearing.pruning.gram import NOISE, Gram
from llmshearing.pruning.hard_concrete import deterministic
from llmshearing.pruning.layer_passes import InMemory
from llmshearing.pruning.shear import Shears, shear_state_dict
from llmshearing.pruning.target import resolve_target, unit_groups
from tests.models import FAMILIES, make_model, token_ids

SHARED = Path(__file__).parents[3] / "shared"
MILD = {"num_hidden_layers": 3, "hidden_size": 40, "intermediate_size": 64}
BATCHES = [token_ids(batch=16, seed=seed) for seed in range(4)]


def shear(model: PreTrainedModel, target: dict[str, int], *, soft: bool = False) -> tuple[PreTrainedModel, Shears]:
    """A sheared model by random scores, with masks of one or softer ones."""
    source = ModelShape.from_hf_config(model.config)
    shape = resolve_target(source, target)
    generator = torch.Generator().manual_seed(0)
    masks = {
        group.dimension: deterministic(2 * torch.randn(group.shape, generator=generator), group.num_kept)
        for group in unit_groups(source, shape)
    }
    if not soft:
        masks = {name: (mask > 0).float() for name, mask in masks.items()}
    shears = Shears(masks, source, shape)
    return cut(model, shears), shears


def cut(model: PreTrainedModel, shears: Shears) -> PreTrainedModel:
    """What is left of a model."""
    config = AutoConfig.for_model(**sheared_config(model.config.to_dict(), shears.target, shears.layers))
    small = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    small.load_state_dict(shear_state_dict(model.state_dict(), shears.masks, shears.source, shears.target))
    return small


def fit(model: PreTrainedModel, small: PreTrainedModel, shears: Shears, batches: list[torch.Tensor]) -> None:
    """Fit ``small`` in place."""
    for _ in Reconstruction(InMemory(model), InMemory(small), shears).fit(batches):
        pass


def logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_with_nothing_cut_nothing_changes(family: str) -> None:
    model = make_model(family)
    before = logits(model, token_ids())
    small, shears = shear(model, {"num_hidden_layers": 4})
    fit(model, small, shears, BATCHES)
    assert (logits(small, token_ids()) - before).abs().max() < 1e-4 * before.abs().max()


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_come_nearer_to_the_sources(family: str, soft: bool) -> None:
    model = make_model(family)
    small, shears = shear(model, MILD, soft=soft)
    new = token_ids(batch=16, seed=99)  # not what is fitted on
    wanted = logits(model, new).log_softmax(-1)

    def divergence() -> float:
        found = logits(small, new).log_softmax(-1)
        return (wanted.exp() * (wanted - found)).sum(-1).mean().item()

    before = divergence()
    fit(model, small, shears, BATCHES)
    assert divergence() < 0.95 * before
    assert small.lm_head.weight is small.model.embed_tokens.weight or not shears.source.tie_word_embeddings


@pytest.mark.parametrize("step", [1, -1])
def test_an_output_layer_that_raises_the_loss_is_left_as_it_was(step: int) -> None:
    model = make_model("llama3")
    small, shears = shear(model, MILD)
    head, norm = small.lm_head.weight.clone(), small.model.norm.weight.clone()
    losses = itertools.count(100, step)
    held_out = HeldOut(BATCHES[:1], lambda *_: (next(losses), 1))
    for _ in Reconstruction(InMemory(model), InMemory(small), shears).fit(BATCHES, held_out):
        pass
    scale = small.model.norm.weight / norm  # which the norm took from the head
    assert torch.allclose(small.lm_head.weight * scale, head, atol=1e-6) == (step > 0)


def test_the_same_text_gives_the_same_weights() -> None:
    model = make_model("qwen2-tied")
    fitted = []
    for _ in range(2):
        small, shears = shear(model, MILD)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        fit(model, small, shears, BATCHES)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        fitted.append(small.state_dict())
    assert all(torch.equal(tensor, fitted[1][name]) for name, tensor in fitted[0].items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_what_cannot_be_fitted_on_is_refused() -> None:
    model = make_model("llama3")
    small, shears = shear(model, MILD)
    with pytest.raises(InputError, match="A fit of 64 inputs needs as many tokens at least, not 48"):
        fit(model, small, shears, [token_ids()])
    with pytest.raises(InputError, match="sequences of one length, in batches of one size"):
        fit(model, small, shears, [*BATCHES, token_ids()])
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight[0] = torch.nan
    with pytest.raises(InputError, match=r"Activations at layer \d's .* are not finite"):
        fit(broken, small, shears, BATCHES)


def test_the_regression_is_that_of_its_normal_equations() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y, start = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((50, 7), (50, 3), (3, 7)))
    weights = torch.rand(50, 1, generator=generator, dtype=torch.float64)
    gram = Gram()
    for rows in (slice(0, 20), slice(20, 50)):
        gram.add(x[rows], y[rows], weights[rows])
    found = gram.solve(start, 0.3, "here").requires_grad_()
    pull = (0.3 + NOISE * 7 / 50) * (x * weights).pow(2).sum(0).mean()
    (weights * (x @ found.T - y)).pow(2).sum().add(pull * (found - start).pow(2).sum()).backward()
    assert found.grad is not None
    assert found.grad.abs().max() < 1e-9  # least where it is found


@pytest.mark.skipif(not (SHARED / "models/stories260K").is_dir(), reason="no ../shared/models/stories260K")
def test_a_trained_model_starts_far_ahead_of_one_that_is_only_cut() -> None:
    model = AutoModelForCausalLM.from_pretrained(SHARED / "models/stories260K").float().eval()
    model.config.use_cache = False
    rows = torch.from_numpy(np.load(SHARED / "golden/stories_self/rows.npy")[:224, :128].astype(np.int64))
    text, new = rows[:64], rows[-64:]
    target = {"hidden_size": 32, "num_hidden_layers": 3, "num_key_value_heads": 2, "intermediate_size": 86}
    live = copy.deepcopy(model)
    pruning = apply_targeted_pruning(live, target, selection="importance", search_steps=4)
    for step in range(4):
        ids = rows[64 + 16 * step : 80 + 16 * step]
        pruning.draw(step)
        live(input_ids=ids, labels=ids).loss.backward()
        pruning.learn(step)
    shears = Shears(pruning.masks.final(), pruning.source, pruning.target)
    small = cut(model, shears)

    def loss() -> float:
        with torch.no_grad():
            return small(input_ids=new, labels=new).loss.item()

    before = loss()
    fit(model, small, shears, list(text.split(16)))
    assert loss() < before - 1.5  # about 2.3 nats


def test_the_first_tokens_sink_outlives_a_token_that_is_taken_for_it() -> None:
    """What is cut tells a sequence's first token from another. One error there is larger than all else together."""
    torch.manual_seed(0)
    model = make_model("llama3")
    first, other, size = 1, 2, model.config.hidden_size
    with torch.no_grad():
        embedding, layer = model.model.embed_tokens.weight, model.model.layers[0]
        embedding[:, 0] = embedding[:, -1] = 0.0
        embedding[first, 0] = embedding[other, 0] = embedding[first, -1] = 30.0
        embedding[other, -1] = -30.0
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.gate_proj.weight[0] = layer.mlp.up_proj.weight[0] = 0.0
        layer.mlp.gate_proj.weight[0, -1] = layer.mlp.up_proj.weight[0, -1] = 10.0
        layer.mlp.down_proj.weight[:, 0] = 1.0
    source = ModelShape.from_hf_config(model.config)
    shape = resolve_target(source, {"hidden_size": size - 8})
    kept = (torch.arange(size) < size - 8).float()
    shears = Shears({"hidden_size": kept}, source, shape)
    small = cut(model, shears)
    batches = []
    for seed in range(4):
        ids = token_ids(batch=16, seed=seed).clamp(min=3)
        ids[:, 0] = first
        ids[::4, 5] = other
        batches.append(ids)

    def sizes(model: PreTrainedModel) -> torch.Tensor:
        with torch.no_grad():
            return model(batches[0], output_hidden_states=True).hidden_states[1].square().mean(-1).sqrt()

    wanted = sizes(model)
    assert wanted[:, 0].min() > 100 * wanted[:, 1:].max()
    fit(model, small, shears, batches)
    assert sizes(small)[:, 0].min() > 0.1 * wanted[:, 0].max()
