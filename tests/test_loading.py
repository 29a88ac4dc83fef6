"""Models asked of ``transformers`` by whatever its version needs."""

from __future__ import annotations

import pytest
import torch

from llmshearing.models.loading import build_on_meta
from tests.models import FAMILIES, make_model, token_ids


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_shapes_only_has_real_buffers_and_its_ties(family: str) -> None:
    model = make_model(family)
    with torch.device("meta"):  # as if someone built it so already
        empty = build_on_meta(model.config, attn_implementation="sdpa")
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert (empty.lm_head.weight is empty.model.embed_tokens.weight) == model.config.tie_word_embeddings
    empty.load_state_dict(model.state_dict(), assign=True)
    with torch.no_grad():
        assert torch.equal(empty.eval()(token_ids()).logits, model(token_ids()).logits)
    assert not make_model(family).lm_head.weight.is_meta  # nothing is left of it
