"""The masked model in memory equals the sheared model from disk, for every family and every subset of dimensions."""

from __future__ import annotations

import copy
from itertools import combinations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from llmshearing.architecture.config import sheared_config
from llmshearing.architecture.shapes import ModelShape
from llmshearing.errors import InputError
from llmshearing.pruning.fold import scale_vectors
from llmshearing.pruning.functional import apply_targeted_pruning
from llmshearing.pruning.hard_concrete import deterministic
from llmshearing.pruning.masked import FoldedLinear, MaskedModel
from llmshearing.pruning.shear import Shears, shear_state_dict
from llmshearing.pruning.target import resolve_target, unit_groups
from tests.models import FAMILIES, make_config, make_model, token_ids

HALF = {
    "num_hidden_layers": 2,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_key_value_heads": 2,
    "num_attention_heads": 2,
}
SUBSETS = [names for size in range(1, len(HALF) + 1) for names in combinations(HALF, size)]
BOUND = 1e-5  # relative to the largest logit, float32
CPU = torch.device("cpu")


def possible_target(source: ModelShape, names: tuple[str, ...]) -> dict[str, int]:
    """The subset of HALF that ``names`` picks, with a head count that the family can have."""
    target = {name: HALF[name] for name in names}
    if "num_attention_heads" in target:
        groups = target.get("num_key_value_heads", source.num_key_value_heads)
        target["num_attention_heads"] = groups
        if source.queries_per_group == 1 and "num_key_value_heads" not in target:
            target["num_attention_heads"] = 4
    return target


def soft_masks(source: ModelShape, target: ModelShape, *, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        group.dimension: deterministic(2 * torch.randn(group.shape, generator=generator), group.num_kept)
        for group in unit_groups(source, target)
    }


def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids).logits


def sheared_model(model: PreTrainedModel, masks: dict, source: ModelShape, target: ModelShape) -> PreTrainedModel:
    """A stock model of the config and with the weights that shearing gives."""
    config = sheared_config(model.config.to_dict(), target, Shears(masks, source, target).layers)
    small = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), attn_implementation="sdpa").eval()
    small.load_state_dict(shear_state_dict(model.state_dict(), masks, source, target), strict=True)
    return small


@pytest.fixture(scope="module")
def table():
    """Largest relative logit difference by family, printed at the end: the evidence, not only the verdict."""
    rows: dict[str, float] = {}
    yield rows
    for family, difference in rows.items():
        print(f"{family:14} {len(SUBSETS)} subsets of dimensions, soft masks: max relative difference {difference:.1e}")


@pytest.mark.parametrize("family", FAMILIES)
def test_masked_equals_sheared_for_every_subset_of_dimensions(family: str, table: dict[str, float]) -> None:
    original = make_model(family)
    source = ModelShape.from_hf_config(original.config)
    ids = token_ids()
    table[family] = 0.0
    for number, names in enumerate(SUBSETS):
        target = resolve_target(source, possible_target(source, names))
        masks = soft_masks(source, target, seed=number)
        model = copy.deepcopy(original)
        MaskedModel(model, source, unit_groups(source, target), CPU).assign(masks)
        masked = logits(model, ids)
        sheared = logits(sheared_model(original, masks, source, target), ids)
        difference = ((masked - sheared).abs().max() / sheared.abs().max()).item()
        table[family] = max(table[family], difference)
        assert difference < BOUND, names
        assert (masked - logits(original, ids)).abs().max() > 1e-2, names  # the masks did something


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_masks_of_one_leave_the_model_bit_for_bit(family: str, attn_implementation: str) -> None:
    model = make_model(family, attn_implementation=attn_implementation)
    source = ModelShape.from_hf_config(model.config)
    ids = token_ids()
    before = logits(model, ids)
    names = list(model.state_dict())
    target = resolve_target(source, possible_target(source, tuple(HALF)))
    MaskedModel(model, source, unit_groups(source, target), CPU)
    assert torch.equal(logits(model, ids), before)
    assert list(model.state_dict()) == names


def test_bfloat16_weights_keep_their_type_and_agree_to_rounding() -> None:
    model = make_model("llama3").to(torch.bfloat16)
    source = ModelShape.from_hf_config(model.config)
    target = resolve_target(source, HALF)
    masks = soft_masks(source, target)
    small = sheared_model(model, masks, source, target).to(torch.bfloat16)
    MaskedModel(model, source, unit_groups(source, target), CPU).assign(masks)
    masked, sheared = logits(model, token_ids()).float(), logits(small, token_ids()).float()
    assert all(
        tensor.dtype == torch.bfloat16
        for tensor in shear_state_dict(model.state_dict(), masks, source, target).values()
    )
    assert (masked - sheared).abs().max() / sheared.abs().max() < 0.05


@pytest.mark.parametrize("family", ["llama3", "llama-biased", "qwen3-tied"])
def test_mask_gradients_equal_those_of_masks_multiplied_out(family: str) -> None:
    """The hand-written backward against finite differences of the loss; float32 norms set the step."""
    model = make_model(family).double()
    source = ModelShape.from_hf_config(model.config)
    target = resolve_target(source, HALF)
    groups = unit_groups(source, target)
    masked = MaskedModel(model, source, groups, CPU)
    for leaf in masked.leaves.values():
        leaf.data = leaf.data.double()
    generator = torch.Generator().manual_seed(5)
    masks = {
        g.dimension: torch.rand(g.shape, generator=generator, dtype=torch.float64).requires_grad_() for g in groups
    }
    ids = token_ids(length=8)

    def loss() -> torch.Tensor:
        masked.assign(masks)
        return model(ids, labels=ids).loss

    loss().backward()
    masked.backward(masks)
    for group in groups:
        mask = masks[group.dimension]
        assert mask.grad is not None
        flat, step = mask.detach().view(-1), 2e-3
        for index in range(0, flat.numel(), max(1, flat.numel() // 5)):
            kept = flat[index].item()
            flat[index] = kept + step
            above = loss().item()
            flat[index] = kept - step
            below = loss().item()
            flat[index] = kept
            assert mask.grad.view(-1)[index].item() == pytest.approx((above - below) / (2 * step), rel=3e-2, abs=5e-4)


@pytest.mark.parametrize(("with_rows", "with_columns"), [(True, True), (True, False), (False, True)])
def test_backward_of_the_folded_product_is_exact(with_rows: bool, with_columns: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64).requires_grad_()

    rows, columns = tensor(4) if with_rows else None, tensor(6) if with_columns else None
    assert torch.autograd.gradcheck(FoldedLinear.apply, (tensor(2, 5, 6), tensor(4, 6), rows, columns))


def test_gradients_gather_over_microbatches_and_start_anew_with_each_batch() -> None:
    model = make_model("llama3")
    source = ModelShape.from_hf_config(model.config)
    groups = unit_groups(source, resolve_target(source, {"hidden_size": 24}))
    masked = MaskedModel(model, source, groups, CPU)
    ids = token_ids(batch=4)

    def gradient(parts: int) -> torch.Tensor:
        mask = torch.full((source.hidden_size,), 0.7, requires_grad=True)
        masked.assign({"hidden_size": mask})
        for part in ids.chunk(parts):
            (model(part, labels=part).loss / parts).backward()
        masked.backward({"hidden_size": mask})
        assert mask.grad is not None
        return mask.grad

    torch.testing.assert_close(gradient(1), gradient(4), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("reentrant", [True, False])
def test_masks_get_their_gradients_where_embeddings_are_frozen_and_layers_recomputed(reentrant: bool) -> None:
    found = []
    for recomputed in (False, True):
        model = make_model("llama3").train()
        model.get_input_embeddings().requires_grad_(False)
        if recomputed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        pruning = apply_targeted_pruning(model, {"intermediate_size": 24}, selection="importance")
        pruning.draw(0)
        model(token_ids(), labels=token_ids()).loss.backward()
        pruning.learn(0)
        found.append(pruning.masks.scores()["intermediate_size"])
    assert found[0].min() > 0
    assert torch.allclose(*found)


def test_dropped_dimensions_of_the_residual_stream_are_exactly_zero() -> None:
    model = make_model("llama3")
    source = ModelShape.from_hf_config(model.config)
    target = resolve_target(source, HALF)
    masks = soft_masks(source, target)
    MaskedModel(model, source, unit_groups(source, target), CPU).assign(masks)
    with torch.no_grad():
        states = model(token_ids(), output_hidden_states=True).hidden_states
    dropped = masks["hidden_size"] == 0
    assert all((state[..., dropped] == 0).all() for state in states)


def test_layers_that_are_not_plain_linear_are_refused() -> None:
    model = make_model("llama3")
    source = ModelShape.from_hf_config(model.config)

    class Adapter(torch.nn.Linear):
        pass

    model.model.layers[1].self_attn.o_proj = Adapter(64, 48, bias=False)
    with pytest.raises(InputError, match=r"layer 1's self_attn.o_proj is a Adapter"):
        MaskedModel(model, source, unit_groups(source, resolve_target(source, HALF)), CPU)


def test_scale_vectors_cover_only_the_masked_dimensions() -> None:
    source = ModelShape.from_hf_config(make_config("llama3"))
    assert scale_vectors({"intermediate_size": torch.ones(4, 80)}, source).keys() == {
        f"intermediate.{i}" for i in range(4)
    }
