"""What units are worth, once for any target: by what they carry, and kept whole."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from llmshearing.architecture.config import sheared_config
from llmshearing.architecture.shapes import ModelShape
from llmshearing.errors import InputError
from llmshearing.pruning.scores import Scores
from llmshearing.pruning.scoring import score
from llmshearing.pruning.shear import shear_state_dict
from tests.models import FAMILIES, make_model, token_ids

BATCHES = [token_ids(batch=4, seed=seed) for seed in range(3)]
TARGETS: list[dict[str, int]] = [
    {"num_hidden_layers": 2, "hidden_size": 40},
    {"intermediate_size": 32, "num_key_value_heads": 1},
    {"num_attention_heads": 4},
]


def scores_of(family: str) -> Scores:
    return score(make_model(family), BATCHES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_unit_scores_the_energy_of_what_it_writes(family: str) -> None:
    model, ids = make_model(family), BATCHES[0]
    source, found = ModelShape.from_hf_config(model.config), score(model, BATCHES[:1])
    layer = model.model.layers[2]
    seen: dict[str, torch.Tensor] = {}
    modules = {"stream": layer, "heads": layer.self_attn.o_proj, "neurons": layer.mlp.down_proj}
    for name, module in modules.items():
        module.register_forward_pre_hook(
            lambda _, inputs, options, name=name: seen.update({name: (*inputs, *options.values())[0]}), with_kwargs=True
        )
    with torch.no_grad():
        model(input_ids=ids)
        for name, linear, where, number in (
            ("num_attention_heads", modules["heads"], "heads", source.num_attention_heads),
            ("intermediate_size", modules["neurons"], "neurons", source.intermediate_size),
        ):
            wanted = []
            for unit in range(number):
                width = linear.in_features // number
                columns = slice(unit * width, (unit + 1) * width)
                written = seen[where][..., columns] @ linear.weight[:, columns].T
                wanted.append((written.square().sum(-1) / seen["stream"].square().mean(-1)).sum())
            if name in found.units:
                torch.testing.assert_close(found.units[name][2].flatten(), torch.stack(wanted), rtol=1e-3, atol=1e-6)
            if name == "num_attention_heads":
                groups = torch.stack(wanted).view(source.num_key_value_heads, -1).sum(-1)
                torch.testing.assert_close(found.units["num_key_value_heads"][2], groups, rtol=1e-3, atol=1e-6)
    assert not any(
        module._forward_pre_hooks for name, module in model.named_modules() if module not in modules.values()
    )


def test_hidden_dimensions_score_their_part_of_the_stream() -> None:
    model = make_model("llama3")
    with torch.no_grad():
        streams = [model(input_ids=ids, output_hidden_states=True).hidden_states[:-1] for ids in BATCHES]
        final: list[torch.Tensor] = []
        hook = model.model.norm.register_forward_pre_hook(lambda _, inputs: final.append(inputs[0]))
        for ids in BATCHES:
            model(input_ids=ids)
        hook.remove()
    squares = [x.square() / x.square().mean(-1, keepdim=True) for x in (*sum(streams, ()), *final)]
    wanted = sum(square.flatten(0, -2).sum(0) for square in squares)
    torch.testing.assert_close(score(model, BATCHES).units["hidden_size"], wanted, rtol=1e-4, atol=0)


def test_the_best_of_each_group_stay() -> None:
    scores = scores_of("llama3")
    for target in TARGETS:
        shape, masks = scores.masks(target)
        assert all(getattr(shape, name) == size for name, size in target.items())
        for name, mask in masks.items():
            units = scores.units[name]
            kept, dropped = units.where(mask > 0, torch.inf).amin(-1), units.where(mask == 0, -torch.inf).amax(-1)
            assert (kept > dropped).all()
            assert set(mask.unique().tolist()) == {0.0, 1.0}


def test_a_layer_scores_the_loss_of_the_model_without_it() -> None:
    model = make_model("qwen3")
    source, found = ModelShape.from_hf_config(model.config), scores_of("qwen3").units["num_hidden_layers"]
    shape = dataclasses.replace(source, num_hidden_layers=source.num_hidden_layers - 1)
    for index in range(source.num_hidden_layers):
        masks = {"num_hidden_layers": torch.ones(source.num_hidden_layers)}
        masks["num_hidden_layers"][index] = 0
        layers = [layer for layer in range(source.num_hidden_layers) if layer != index]
        small = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**sheared_config(model.config.to_dict(), shape, layers))
        ).eval()
        small.load_state_dict(shear_state_dict(model.state_dict(), masks, source, shape))
        with torch.no_grad():
            losses = [small(input_ids=ids, labels=ids).loss.item() for ids in BATCHES]
        assert found[index].item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    scores = scores_of("qwen2-tied")
    scores.save(tmp_path / "below" / "scores.safetensors")
    again = Scores.load(tmp_path / "below" / "scores.safetensors")
    assert again.source == scores.source
    assert all(torch.equal(again.units[name], units) for name, units in scores.units.items())
    for target in TARGETS:
        masks = (found.masks(target)[1] for found in (scores, again))
        first, second = (masks for masks in masks)
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_scores_know_their_model() -> None:
    model = make_model("llama3")
    scores, source = scores_of("llama3"), ModelShape.from_hf_config(model.config)
    embedding = model.get_input_embeddings().weight
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        scores.check_model(source, embedding.to(dtype), "same")
    with pytest.raises(InputError, match=r"of another model than 'other': the embeddings differ"):
        scores.check_model(source, embedding.roll(1, 0), "other")
    with pytest.raises(InputError, match="The scores are of a model of"):
        scores.check_model(dataclasses.replace(source, num_hidden_layers=3), embedding, "other")


def test_scores_that_are_not_finite_are_refused() -> None:
    model = make_model("llama3")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0] = torch.nan
    with pytest.raises(InputError, match="are not finite. Take other text or another model, or float32"):
        score(model, BATCHES)


def _without_metadata(path: Path) -> None:
    save_file(load_file(path), path)


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _of_another_shape(path: Path) -> None:
    scores = Scores.load(path)
    units: dict[str, Any] = copy.copy(dict(scores.units))
    units["hidden_size"] = units["hidden_size"][1:].clone()
    Scores(scores.source, units, scores.mark).save(path)


@pytest.mark.parametrize("harm", [_without_metadata, _truncated, _of_another_shape, Path.unlink])
def test_a_file_that_is_not_one_of_scores_is_refused(harm: Any, tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    scores_of("llama3").save(path)
    harm(path)
    with pytest.raises(InputError, match=r"not a file of scores|There is no file"):
        Scores.load(path)
