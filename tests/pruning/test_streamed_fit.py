"""A fit that reads weights as it needs them: the same as one in memory, with few of them at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from llmshearing.models.streamed import StreamedModel
from llmshearing.pruning.fit import HeldOut, Reconstruction
from llmshearing.pruning.layer_passes import InMemory
from llmshearing.reference_loss.evaluate import sum_of_losses
from tests.models import FAMILIES, make_model, token_ids
from tests.pruning.test_fit import BATCHES, MILD, shear


class Watched(StreamedModel):
    """Counts the layers that have weights at once."""

    most = 0

    @contextmanager
    def held(self, name: str) -> Iterator[nn.Module]:
        with super().held(name) as module:
            layers = self.model.model.layers
            self.most = max(self.most, sum(not next(layer.parameters()).is_meta for layer in layers))
            yield module


def streamed(model: PreTrainedModel) -> Watched:
    weights = {name: tensor.clone() for name, tensor in model.named_parameters()}
    return Watched(model.config, weights.__getitem__, device=torch.device("cpu"))


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_one_in_memory_with_a_layer_of_each_model_at_a_time(family: str) -> None:
    model = make_model(family)
    small, shears = shear(model, MILD)
    parts = [streamed(model), streamed(small)]
    held_out = HeldOut([token_ids(batch=16, seed=77)], sum_of_losses)
    found = dict(Reconstruction(*parts, shears).fit(BATCHES, held_out))
    assert [part.most for part in parts] == [1, 1]
    assert all(parameter.is_meta for part in parts for parameter in part.model.parameters())
    ids = held_out.batches[0]
    with torch.no_grad():
        losses = {"source": sum_of_losses(model, ids), "before": sum_of_losses(small, ids)}
        for _ in Reconstruction(InMemory(model), InMemory(small), shears).fit(BATCHES, HeldOut([ids], sum_of_losses)):
            pass
        losses["after"] = sum_of_losses(small, ids)
    own = dict(small.named_parameters())
    assert found.keys() == own.keys()
    assert all(torch.equal(tensor, own[name]) for name, tensor in found.items())
    assert held_out.losses == pytest.approx({name: total / count for name, (total, count) in losses.items()}, rel=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_a_part_has_its_own_weights_while_it_is_held(tied: bool) -> None:
    model = make_model("qwen2-tied" if tied else "qwen2")
    parts = streamed(model)
    for name in ("model.embed_tokens", "model.layers.2", "model.norm", "lm_head"):
        with parts.held(name) as module:
            for key, parameter in model.get_submodule(name).named_parameters():
                assert torch.equal(module.get_parameter(key), parameter)
        assert all(parameter.is_meta for parameter in parts.model.parameters())
