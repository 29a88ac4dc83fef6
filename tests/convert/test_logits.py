"""A converted folder computes what the model in the checkpoint did, for every family and with the cache on and off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from llmshearing import ModelShape
from llmshearing.convert.commands import export, shear
from llmshearing.models.loading import DTYPE
from llmshearing.pruning.hard_concrete import deterministic
from llmshearing.pruning.masked import MaskedModel
from llmshearing.pruning.target import unit_groups
from tests.convert.checkpoints import dense, pruned, pruning_of
from tests.models import FAMILIES, make_model, token_ids

EXACT = 1e-5  # of the largest logit: float32 sums in another order
ROUNDED = 0.08  # bfloat16 has 8 bits


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def pruning(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruning checkpoint of the family."""
    return pruned(tmp_path_factory.mktemp(family), family=family)


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model.eval()(token_ids()).logits.float()


def difference(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def same_tensors(found: PreTrainedModel, wanted: PreTrainedModel) -> bool:
    """Whether all parameters and buffers are the same to the last bit, and of the same dtype."""
    tensors = [
        # Gemma's scale of the embedding gets the weights' dtype sooner or later, the same in the end.
        {name: t for name, t in (*model.named_parameters(), *model.named_buffers()) if not name.endswith("embed_scale")}
        for model in (found, wanted)
    ]
    return tensors[0].keys() == tensors[1].keys() and all(
        tensor.dtype == tensors[1][name].dtype and torch.equal(tensor, tensors[1][name])
        for name, tensor in tensors[0].items()
    )


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, **{DTYPE: "auto"})


def trained(checkpoint: Path, family: str) -> PreTrainedModel:
    """The Hugging Face model with the checkpoint's weights."""
    model = make_model(family)
    state = torch.load(checkpoint, weights_only=False)["state"]["model"]
    model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in state.items()})
    return model


def masked(checkpoint: Path, family: str) -> PreTrainedModel:
    """The same with the checkpoint's masks at work, as in the evaluations of the run."""
    model = trained(checkpoint, family)
    pruning = pruning_of(torch.load(checkpoint, weights_only=False))
    source, target = ModelShape.from_dict(pruning["source"]), ModelShape.from_dict(pruning["target"])
    groups = unit_groups(source, target)
    log_alpha = pruning["masks"]["log_alpha"]
    masks = {group.dimension: deterministic(log_alpha[group.dimension], group.num_kept) for group in groups}
    MaskedModel(model, source, groups, torch.device("cpu")).assign(masks)
    return model


def test_sheared_folder_computes_what_the_masked_model_did(tmp_path: Path, pruning: Path, family: str) -> None:
    wanted = logits(masked(pruning, family))
    assert difference(logits(trained(pruning, family)), wanted) > 0.1  # the masks matter
    shear(pruning, tmp_path / "float32")
    shear(pruning, tmp_path / "bfloat16", dtype=torch.bfloat16)
    assert difference(logits(load(tmp_path / "float32")), wanted) < EXACT
    half = load(tmp_path / "bfloat16")
    assert half.dtype == torch.bfloat16
    assert 0 < difference(logits(half), wanted) < ROUNDED


def test_generation_does_not_depend_on_the_cache(tmp_path: Path, pruning: Path) -> None:
    shear(pruning, tmp_path / "out")
    model = load(tmp_path / "out")
    assert model.config.use_cache
    settings = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cached, recomputed = (model.generate(token_ids(), use_cache=cache, **settings) for cache in (True, False))
    assert cached.shape == (2, 48)
    assert torch.equal(cached, recomputed)


def test_exported_folder_computes_what_training_did(tmp_path: Path, family: str) -> None:
    checkpoint = dense(tmp_path / "run", family=family)
    model = trained(checkpoint, family)
    export(checkpoint, tmp_path / "float32")
    export(checkpoint, tmp_path / "bfloat16", dtype=torch.bfloat16)
    exported = load(tmp_path / "float32")
    assert same_tensors(exported, model)
    assert difference(logits(exported), logits(model)) < EXACT  # where weights lie in a file decides how sums are taken
    for parameter in model.parameters():  # and no buffer: rotary frequencies stay exact
        parameter.data = parameter.data.bfloat16()
    exported = load(tmp_path / "bfloat16")
    assert same_tensors(exported, model)
    assert difference(logits(exported), logits(model)) < ROUNDED
    generation = json.loads((tmp_path / "float32" / "generation_config.json").read_text())
    assert (generation["bos_token_id"], generation["eos_token_id"]) == (1, 2)
