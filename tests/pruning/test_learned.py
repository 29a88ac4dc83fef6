"""The constraint and the min-max step, against hand-computed cases and the original's numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llmshearing.architecture.axes import HIDDEN, INTERMEDIATE, KV_HEADS, LAYERS
from llmshearing.architecture.shapes import ModelShape
from llmshearing.pruning.hard_concrete import LOG_ALPHA_MAX, LOG_ALPHA_MIN, keep_probability
from llmshearing.pruning.lagrangian import Multipliers, constraint, target_fraction
from llmshearing.pruning.learned import LearnedMasks
from llmshearing.pruning.selection import RandomUnits
from llmshearing.pruning.target import UnitGroup, resolve_target, unit_groups

SOURCE = ModelShape(32, 48, 4, 4, 4, 8, 64)
GROUPS = unit_groups(
    SOURCE, resolve_target(SOURCE, {HIDDEN: 16, LAYERS: 2, "num_attention_heads": 2, INTERMEDIATE: 24})
)
NAMES = {"head": KV_HEADS, "intermediate": INTERMEDIATE, "layer": LAYERS, "hidden": HIDDEN}  # the original's


def make_masks(*, compat: str = "paper", warmup_steps: int = 50, lr: float = 1.0, seed: int = 3) -> LearnedMasks:
    return LearnedMasks(
        GROUPS,
        lr=lr,
        betas=(0.9, 0.95),
        warmup_steps=warmup_steps,
        compat=compat,
        seed=seed,
        device=torch.device("cpu"),
    )


def test_target_goes_linearly_from_everything_to_the_target() -> None:
    group = UnitGroup(HIDDEN, (32,), 16)
    assert [target_fraction(group, step, warmup_steps=100) for step in (0, 25, 50, 100, 1000)] == [
        1,
        0.875,
        0.75,
        0.5,
        0.5,
    ]
    assert target_fraction(group, 0, warmup_steps=0) == 0.5


def test_constraint_is_the_sum_over_groups_of_the_linear_and_the_quadratic_term() -> None:
    log_alpha = torch.tensor([[0.0, 0.0], [4.0, 4.0]], dtype=torch.float64)
    multipliers = Multipliers(torch.tensor([2.0, 3.0]).double(), torch.tensor([5.0, 7.0]).double())
    excess = keep_probability(torch.tensor([0.0, 4.0], dtype=torch.float64)) - 0.5
    by_hand = (2 * excess[0] + 5 * excess[0] ** 2) + (3 * excess[1] + 7 * excess[1] ** 2)
    torch.testing.assert_close(constraint(log_alpha, multipliers, 0.5, compat="paper"), by_hand)


def test_constraint_alone_brings_every_group_to_its_target() -> None:
    masks = make_masks(lr=0.1)
    for step in range(600):
        masks.learn(step)
    assert masks.statistics(599)["distance"] < 0.03


def test_every_layer_has_its_own_multipliers_in_the_paper_and_shares_them_in_the_original() -> None:
    assert make_masks(compat="paper").multipliers[INTERMEDIATE].lam.shape == (4,)
    assert make_masks(compat="upstream").multipliers[INTERMEDIATE].lam.shape == ()


def test_noise_depends_on_seed_and_step_only() -> None:
    first, second = make_masks(), make_masks()
    for name, z in first.draw(7).items():
        assert torch.equal(z, second.draw(7)[name])
    assert not torch.equal(first.draw(7)[HIDDEN], second.draw(8)[HIDDEN])


def test_every_seed_and_step_has_its_own_noise() -> None:
    seeds = [0, 1, 2, 2**32, 2**32 + 1, 2**63, 2**64 + 1]
    drawn = [make_masks(seed=seed).draw(step) for seed in seeds for step in (0, 1, 2**32)]
    assert len({tuple(masks[INTERMEDIATE].flatten().tolist()) for masks in drawn}) == len(drawn)
    chosen = [RandomUnits(GROUPS, seed=seed, device=torch.device("cpu")).scores() for seed in seeds]
    assert len({tuple(scores[HIDDEN].tolist()) for scores in chosen}) == len(seeds)


def test_final_masks_have_exactly_the_target_shape_whatever_was_learned() -> None:
    masks = make_masks()
    with torch.no_grad():
        for log_alpha in masks.log_alpha.values():
            log_alpha.normal_(generator=torch.Generator().manual_seed(0))
    for group in GROUPS:
        assert ((masks.final()[group.dimension] != 0).sum(-1) == group.num_kept).all()


def test_parameters_stay_where_no_unit_is_decided_for_good() -> None:
    masks = make_masks(lr=5.0, warmup_steps=0)
    for step in range(50):
        masks.learn(step)
    for log_alpha in masks.log_alpha.values():
        assert log_alpha.min() >= LOG_ALPHA_MIN
        assert log_alpha.max() <= LOG_ALPHA_MAX


def test_state_continues_to_the_same_bits() -> None:
    straight, before = make_masks(), make_masks()
    for step in range(20):
        straight.learn(step)
    for step in range(10):
        before.learn(step)
    after = make_masks()
    after.load_state_dict(before.state_dict())
    for step in range(10, 20):
        after.learn(step)
    for name in NAMES.values():
        assert torch.equal(straight.log_alpha[name], after.log_alpha[name])
        assert torch.equal(straight.multipliers[name].lam, after.multipliers[name].lam)


def test_state_has_the_same_layout_before_and_after_the_first_step() -> None:
    def layout(tree: object) -> object:
        if isinstance(tree, dict):
            return {key: layout(value) for key, value in tree.items()}
        return tuple(tree.shape) if isinstance(tree, torch.Tensor) else type(tree)

    masks = make_masks()
    before = layout(masks.state_dict())
    masks.learn(0)
    assert layout(masks.state_dict()) == before


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_golden_lagrangian_and_gradients_of_the_original(shared: Path, dtype: str) -> None:
    golden = json.loads((shared / "golden" / "l0_module.json").read_text())
    kind = getattr(torch, dtype)
    by_name = {group.dimension: group for group in GROUPS}
    for case in golden["cases"]:
        for step in case[dtype]["steps"]:
            log_alpha, multipliers, terms = {}, {}, []
            for name, dimension in NAMES.items():
                values = torch.tensor(case[dtype]["z_loga_after_clamp"][name], dtype=kind, requires_grad=True)
                lam, phi = (torch.tensor(value, dtype=kind, requires_grad=True) for value in case["lambdas"][name])
                log_alpha[name], multipliers[name] = values, Multipliers(lam, phi)
                fraction = target_fraction(by_name[dimension], step["step"], warmup_steps=golden["config"]["warmup"])
                terms.append(constraint(values, multipliers[name], fraction, compat="upstream"))
            total = torch.stack(terms).sum()
            total.backward()
            assert total.item() == pytest.approx(step["loss"], abs=1e-6)
            for name in NAMES:
                expected = torch.tensor(step["grad_z_loga"][name], dtype=kind)
                torch.testing.assert_close(log_alpha[name].grad, expected, atol=1e-6, rtol=0)
                for number, tensor in ((1, multipliers[name].lam), (2, multipliers[name].phi)):
                    assert tensor.grad is not None
                    assert tensor.grad.item() == pytest.approx(
                        step["grad_lambdas"][f"lambda_{number}_{name}"], abs=1e-6
                    )


def test_golden_trajectory_of_the_original_over_200_steps(shared: Path) -> None:
    golden = json.loads((shared / "golden" / "mask_trajectory.json").read_text())
    settings = golden["settings"]
    for run in golden["runs"]:
        if run["dtype"] != "float32":  # masks live in float32
            continue
        masks = make_masks(compat="upstream", warmup_steps=settings["warmup"], lr=settings["lr_masks"])
        with torch.no_grad():
            for name, dimension in NAMES.items():
                start = torch.tensor(run["z_loga0"][name]).view_as(masks.log_alpha[dimension])
                masks.log_alpha[dimension].copy_(start.clamp(LOG_ALPHA_MIN, LOG_ALPHA_MAX))
        expected = {row["step"]: row for row in run["traj"]}
        for step in range(settings["steps"]):
            if step in expected:
                row = expected[step]
                for name, dimension in NAMES.items():
                    sparsity = 1 - keep_probability(masks.log_alpha[dimension]).mean().item()
                    assert sparsity == pytest.approx(row["info"][f"expected_{name}_sparsity"], abs=1e-3)
                    lam = masks.multipliers[dimension].lam.item()
                    assert lam == pytest.approx(row["lambdas"][f"lambda_1_{name}"], rel=1e-3, abs=1e-3)
            value = masks.learn(step)["lagrangian"].item()
            if step in expected:
                assert value == pytest.approx(expected[step]["loss"], abs=1e-3)
