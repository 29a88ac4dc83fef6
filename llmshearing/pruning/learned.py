"""Masks that are learned: the parameters, their multipliers and the min-max step (Sheared LLaMA, section 2.1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from llmshearing.pruning import hard_concrete
from llmshearing.pruning.chooser import Chooser
from llmshearing.pruning.lagrangian import Multipliers, constraint, target_fraction
from llmshearing.pruning.noise import generator
from llmshearing.pruning.target import UnitGroup

# A unit is undecided while its probability of staying is between these.
_UNDECIDED = (0.05, 0.95)


class LearnedMasks(Chooser):
    """Hard-concrete masks of all unit groups and the optimizer that learns them.

    Args:
        groups: what is pruned.
        lr: learning rate of the masks, and of the multipliers, which ascend.
        betas: AdamW coefficients of both.
        warmup_steps: steps over which the constraint's target goes linearly from the source to the target shape.
        compat: ``'paper'`` or ``'upstream'``, see :func:`~llmshearing.pruning.lagrangian.constraint`.
        seed: of the noise; the noise of a step depends on (seed, step) only, not on ranks or restarts.
        device: where masks live.
    """

    def __init__(
        self,
        groups: Iterable[UnitGroup],
        *,
        lr: float,
        betas: tuple[float, float],
        warmup_steps: int,
        compat: str,
        seed: int,
        device: torch.device,
    ) -> None:
        super().__init__(groups, device=device)
        self.warmup_steps, self.compat, self.seed, self.lr = warmup_steps, compat, seed, lr
        self.log_alpha: dict[str, Tensor] = {
            name: torch.full(group.shape, hard_concrete.LOG_ALPHA_MAX, device=device, requires_grad=True)
            for name, group in self.groups.items()
        }
        self.multipliers = {
            name: Multipliers.zeros(group, compat=compat, device=device) for name, group in self.groups.items()
        }
        ascending = [tensor for pair in self.multipliers.values() for tensor in (pair.lam, pair.phi)]
        param_groups: list[dict[str, Any]] = [
            {"params": list(self.log_alpha.values())},
            {"params": ascending, "maximize": True},
        ]
        self.optimizer = torch.optim.AdamW(
            param_groups,
            lr=lr,
            betas=betas,
            weight_decay=0.0,
        )
        # Written out before the first step, so that every checkpoint holds the same tensors.
        for tensor in (*self.log_alpha.values(), *ascending):
            self.optimizer.state[tensor] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(tensor),
                "exp_avg_sq": torch.zeros_like(tensor),
            }

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """``log_alpha``."""
        return self.log_alpha

    def draw(self, step: int) -> dict[str, Tensor]:
        """Sampled masks of one training step, differentiable in ``log_alpha``."""
        noise = generator("masks", self.seed, step)
        return {
            name: hard_concrete.sample(log_alpha, torch.rand(log_alpha.shape, generator=noise).to(log_alpha.device))
            for name, log_alpha in self.log_alpha.items()
        }

    @torch.no_grad()
    def expected(self) -> dict[str, Tensor]:
        """Deterministic masks of the size that the masks now expect, for evaluation on the way to the target.

        Before the first step, masks of one: the source.
        """
        if self.chosen is not None or not self._steps():
            return super().expected()
        masks = {}
        for name, log_alpha in self.log_alpha.items():
            size = hard_concrete.keep_probability(log_alpha).sum(-1).round().long().clamp(min=1)
            masks[name] = hard_concrete.deterministic(log_alpha, size)
        return masks

    def scores(self) -> Mapping[str, Tensor]:
        """``log_alpha``, by which a unit's probability of staying grows."""
        return self.log_alpha

    def _steps(self) -> int:
        """How often the masks were updated."""
        return int(self.optimizer.state[next(iter(self.log_alpha.values()))]["step"])

    def learn(self, step: int, *, lr_factor: float = 1.0) -> dict[str, Tensor | float]:
        """One min-max step: add the constraint's gradients to those that ``log_alpha`` has from the loss, and update.

        Returns:
            ``lagrangian``: its value before the update, a detached scalar.
        """
        terms = [
            constraint(
                self.log_alpha[name],
                self.multipliers[name],
                target_fraction(group, step, warmup_steps=self.warmup_steps),
                compat=self.compat,
            )
            for name, group in self.groups.items()
        ]
        lagrangian = torch.stack(terms).sum()
        lagrangian.backward()
        for param_group in self.optimizer.param_groups:
            param_group["lr"] = self.lr * lr_factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for log_alpha in self.log_alpha.values():
                log_alpha.clamp_(hard_concrete.LOG_ALPHA_MIN, hard_concrete.LOG_ALPHA_MAX)
        return {"lagrangian": lagrangian.detach()}

    def settled(self, step: int) -> bool:
        """Whether the constraint has asked for the full target long enough that sizes should be near it."""
        return self.chosen is not None or step >= 2 * self.warmup_steps + 200

    @torch.no_grad()
    def statistics(self, step: int) -> dict[str, Tensor | float]:
        """What to log after ``step``: sizes in config units, multipliers (means over groups) and undecided units."""
        if self.chosen is not None:
            return super().statistics(step)
        values: dict[str, Tensor | float] = {}
        distance = []
        low, high = _UNDECIDED
        for name, group in self.groups.items():
            keep = hard_concrete.keep_probability(self.log_alpha[name])
            size = keep.sum(-1) * group.multiple
            target = target_fraction(group, step, warmup_steps=self.warmup_steps) * group.num_units * group.multiple
            values[f"{name}/expected"] = size.mean()
            values[f"{name}/target"] = target
            values[f"{name}/undecided"] = ((keep > low) & (keep < high)).sum()
            values[f"{name}/lambda"] = self.multipliers[name].lam.mean()
            values[f"{name}/phi"] = self.multipliers[name].phi.mean()
            distance.append((keep.mean(-1) - group.num_kept / group.num_units).abs().max())
        values["distance"] = torch.stack(distance).max()
        return values

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only, of the same layout at every step."""
        return {
            **super().state_dict(),
            "log_alpha": {name: tensor.detach().clone() for name, tensor in self.log_alpha.items()},
            "lambda": {name: pair.lam.detach().clone() for name, pair in self.multipliers.items()},
            "phi": {name: pair.phi.detach().clone() for name, pair in self.multipliers.items()},
            "optimizer": self.optimizer.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`; tensors are copied to where the masks live, settings are not taken over."""
        super().load_state_dict(state)
        betas = [param_group["betas"] for param_group in self.optimizer.param_groups]
        for name in self.groups:
            self.log_alpha[name].copy_(state["log_alpha"][name])
            self.multipliers[name].lam.copy_(state["lambda"][name])
            self.multipliers[name].phi.copy_(state["phi"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        for param_group, own in zip(self.optimizer.param_groups, betas, strict=True):
            param_group["betas"] = own
