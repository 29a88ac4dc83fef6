"""Targeted structured pruning as a Composer algorithm."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from composer.core import Algorithm, Event, Precision, State
from composer.loggers import Logger
from composer.models import HuggingFaceModel
from torch import Tensor

from llmshearing.errors import InputError, unknown_name
from llmshearing.pruning.freeze import drop_gradients, forget_empty_state
from llmshearing.pruning.lagrangian import COMPATIBILITIES
from llmshearing.pruning.learned import LearnedMasks
from llmshearing.pruning.masked import MaskedModel
from llmshearing.pruning.ranks import average_gradients
from llmshearing.pruning.selection import SELECTIONS, Importance, random_scores
from llmshearing.pruning.target import resolve_target, unit_groups
from llmshearing.pruning.times import parse_time, steps
from llmshearing.shape import ModelShape

log = logging.getLogger(__name__)

LR_SCHEDULES = ("constant", "follow")
# Share of the way from source to target that a size may be off when the constraint has long been in force.
_DIVERGED = 0.95
_SEARCH_WARMUP = 0.4  # of the search


class TargetedPruning(Algorithm):
    """Learn which layers, heads, neurons and hidden dimensions to keep, until exactly the target shape is left.

    Sheared LLaMA (Xia et al., 2024), section 2.1. Works in any :class:`~composer.trainer.Trainer` around a
    :class:`~composer.models.HuggingFaceModel` (so also :class:`~llmshearing.ComposerLlama`) of the LLaMA family. Masks
    and multipliers have their own optimizer; the user's optimizer, schedule, clipping and checkpoint keys stay as
    they are. While masks are learned, evaluation uses deterministic masks of the size expected so far; from the last
    batch on, of exactly the target shape.

    By default masks are learned along with the weights until the run ends, as in the paper. With ``search``, units are
    chosen in that time, on the source's weights, which stand still; from then on the chosen units have masks of one,
    the others zero, and the rest of the run is ordinary training.

    Args:
        target: sizes by Hugging Face config name, any of ``num_hidden_layers``, ``hidden_size``,
            ``intermediate_size``, ``num_attention_heads``, ``num_key_value_heads``. What is left out is not pruned.
        lr: learning rate of masks and multipliers.
        lr_schedule: ``'constant'``, or ``'follow'`` to scale ``lr`` as the scheduler scales the model's.
        betas: AdamW coefficients of masks and multipliers.
        warmup: the constraint goes from the source to the target shape over this time, in batches (``'640ba'``) or
            as a share of the run (``'0.2dur'``). ``None``: 640 batches, or 0.4 of ``search``.
        selection: ``'learned'``; or, without learning, ``'importance'`` (squared gradient of each unit's mask over
            ``search``, 8 batches if that is ``None``) or ``'random'`` (from the first batch on).
        search: time for the choice, like ``warmup``; ``'1dur'`` leaves the training to a run on the sheared model.
        compat: ``'paper'`` (multipliers per layer) or ``'upstream'`` (as the original code: one pair per dimension).
        seed: of the masks' noise, and of the choice at random: any whole number from 0 on.

    Raises:
        InputError: at construction or at :attr:`~composer.Event.INIT`, for a target, model or setting that cannot work.
    """

    def __init__(
        self,
        target: Mapping[str, int],
        *,
        lr: float = 1.0,
        lr_schedule: str = "constant",
        betas: tuple[float, float] = (0.9, 0.95),
        warmup: str | None = None,
        selection: str = "learned",
        search: str | None = None,
        compat: str = "paper",
        seed: int = 17,
    ) -> None:
        if selection not in SELECTIONS:
            raise unknown_name("selection", selection, SELECTIONS)
        if selection == "random" and search is not None:
            raise InputError(f"search is '{search}', but random units need no search. Leave it out.")
        if selection != "learned" and warmup is not None:
            raise InputError(f"warmup is '{warmup}', but masks are not learned by selection '{selection}'.")
        if compat not in COMPATIBILITIES:
            raise unknown_name("compat", compat, COMPATIBILITIES)
        if lr_schedule not in LR_SCHEDULES:
            raise unknown_name("lr_schedule", lr_schedule, LR_SCHEDULES)
        if not lr > 0:
            raise InputError(f"lr is {lr}; the masks' learning rate must be above 0.")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise InputError(f"seed is {seed!r}; the masks' seed must be a whole number, 0 or above.")
        self.target = dict(target)
        self.lr, self.lr_schedule, self.betas = lr, lr_schedule, (float(betas[0]), float(betas[1]))
        self.selection, self.compat, self.seed = selection, compat, seed
        self.search = "8ba" if search is None and selection == "importance" else search
        self.warmup = warmup if warmup is not None or self.search is not None else "640ba"
        for name, time in (("warmup", self.warmup), ("search", self.search)):
            parse_time(name, time)
        self.source_shape: ModelShape
        self.target_shape: ModelShape
        self.masks: LearnedMasks
        self._importance: Importance | None = None
        self._search_steps = 0
        self._model: MaskedModel
        self._drawn: dict[str, Tensor] = {}
        self._lr_factor = 1.0

    def __repr__(self) -> str:
        return (
            f"TargetedPruning(target={self.target!r}, lr={self.lr!r}, lr_schedule={self.lr_schedule!r}, "
            f"betas={self.betas!r}, warmup={self.warmup!r}, selection={self.selection!r}, search={self.search!r}, "
            f"compat={self.compat!r}, seed={self.seed!r})"
        )

    def match(self, event: Event, state: State) -> bool:
        """INIT builds the masks; the rest keeps the right ones on the model and learns from each batch."""
        return event in (
            Event.INIT,
            Event.AFTER_LOAD,
            Event.FIT_START,
            Event.BEFORE_TRAIN_BATCH,
            Event.AFTER_TRAIN_BATCH,
            Event.BATCH_END,
            Event.EVAL_START,
            Event.FIT_END,
        )

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Run the step of ``event``, see :meth:`match`."""
        if event == Event.INIT:
            self._build(state)
        elif event == Event.FIT_START:
            self._resolve_times(state)
        elif event == Event.BEFORE_TRAIN_BATCH:  # again on every retry of automatic microbatching
            self._draw(state)
        elif event == Event.AFTER_TRAIN_BATCH:
            if self._search_steps and not self.masks.decided:
                drop_gradients(state.model)
        elif event == Event.BATCH_END:
            self._learn(state, logger)
        else:
            self._model.assign(self._evaluation_masks(state))
            if event == Event.FIT_END:
                self._report(state)

    def _build(self, state: State) -> None:
        if not isinstance(state.model, HuggingFaceModel):
            raise InputError(
                "TargetedPruning needs a composer.models.HuggingFaceModel or ComposerLlama, "
                f"got {type(state.model).__name__}."
            )
        if state.precision == Precision.AMP_FP16:
            raise InputError(
                "TargetedPruning does not support precision amp_fp16, whose loss scaling would scale the masks' "
                "gradients. Use amp_bf16."
            )
        model = state.model.model
        self.source_shape = ModelShape.from_hf_config(model.config)
        self.target_shape = resolve_target(self.source_shape, self.target)
        groups = unit_groups(self.source_shape, self.target_shape)
        if not groups:
            raise InputError(f"The target equals the source model ({self.source_shape}): there is nothing to prune.")
        device = state.device.tensor_to_device(torch.empty(0)).device
        self.masks = LearnedMasks(
            groups,
            lr=self.lr,
            betas=self.betas,
            warmup_steps=0,  # known at FIT_START
            compat=self.compat,
            seed=self.seed,
            device=device,
        )
        if self.selection == "importance":
            self._importance = Importance(groups, device=device)
        elif self.selection == "random":
            self.masks.decide(random_scores(groups, self.seed))
        self._model = MaskedModel(model, self.source_shape, groups, device)
        log.info(
            "Pruning from %s (%d parameters) to %s (%d parameters).",
            self.source_shape,
            self.source_shape.num_parameters(),
            self.target_shape,
            self.target_shape.num_parameters(),
        )

    def _resolve_times(self, state: State) -> None:
        """Times given as shares of the run need its length, which Composer knows only when fitting."""
        self._search_steps = steps("search", self.search, state.max_duration)
        if self.warmup is None:
            self.masks.warmup_steps = round(_SEARCH_WARMUP * self._search_steps)
        else:
            self.masks.warmup_steps = steps("warmup", self.warmup, state.max_duration)
        if self.search is None:
            return
        if not self.masks.warmup_steps < self._search_steps:
            raise InputError(f"search is '{self.search}', warmup '{self.warmup}': search must be the longer one.")
        if state.max_duration is not None and self._search_steps > steps("max_duration", "1dur", state.max_duration):
            raise InputError(f"search is '{self.search}', longer than the run of {state.max_duration}.")
        if (start := int(state.timestamp.batch)) >= self._search_steps and not self.masks.decided:
            raise InputError(f"search is '{self.search}', but the checkpoint at batch {start} had not ended its own.")

    def _draw(self, state: State) -> None:
        if self.masks.decided:
            if self._search_steps and int(state.timestamp.batch) == self._search_steps:
                forget_empty_state(state.optimizers)
            self._drawn = {}
            self._model.assign(self.masks.final())
            return
        self._drawn = self._importance.draw() if self._importance else self.masks.draw(int(state.timestamp.batch))
        self._model.assign(self._drawn)
        if self.lr_schedule == "follow":
            group = state.optimizers[0].param_groups[0]
            self._lr_factor = group["lr"] / group.get("initial_lr", group["lr"])

    def _learn(self, state: State, logger: Logger) -> None:
        # At BATCH_END rather than before the optimizer's step, which automatic microbatching may run twice.
        step = int(state.timestamp.batch) - 1
        values: dict[str, Tensor | float] = {}
        if self._drawn:
            self._model.backward(self._drawn)
            if self._importance:
                self._importance.add(average_gradients(self._drawn))
                values["importance"] = torch.stack([score.sum() for score in self._importance.scores.values()]).sum()
            else:
                average_gradients(self.masks.log_alpha)
                values["lagrangian"] = self.masks.step(step, lr_factor=self._lr_factor)
            self._drawn = {}
            if step + 1 == self._search_steps:
                self.masks.decide(self._importance.scores if self._importance else None)
                log.info("The units are chosen; training goes on with %s.", self.target_shape)
        values |= self.masks.statistics(step)
        self._check(step, self._log(values, logger))

    def _log(self, values: Mapping[str, Tensor | float], logger: Logger) -> dict[str, float]:
        device = next(iter(self.masks.log_alpha.values())).device
        numbers = [torch.as_tensor(value, dtype=torch.float32, device=device) for value in values.values()]
        metrics = dict(zip(values, torch.stack(numbers).tolist(), strict=True))  # one transfer for all
        logger.log_metrics({f"pruning/{name}": value for name, value in metrics.items()})
        return metrics

    def _check(self, step: int, metrics: Mapping[str, float]) -> None:
        if broken := [name for name, value in metrics.items() if value != value]:
            self._stop(step, f"{', '.join(broken)} became NaN")
        if self._importance is None and self.masks.settled(step):
            for name, group in self.masks.groups.items():
                target, source = group.num_kept * group.multiple, group.num_units * group.multiple
                expected = metrics[f"{name}/expected"]
                if abs(expected - target) > _DIVERGED * (source - target):
                    self._stop(step, f"{name} is {expected:.1f} and as far from its target {target} as at the start")

    def _stop(self, step: int, what: str) -> None:
        raise RuntimeError(
            f"Pruning diverged at batch {step}: {what}. If the loss was finite, lower the masks' lr ({self.lr}) or "
            f"lengthen the warmup ({self.warmup}), and resume from a checkpoint before it."
        )

    def _evaluation_masks(self, state: State) -> dict[str, Tensor]:
        finished = state.max_duration is not None and state.timestamp >= state.max_duration
        return self.masks.final() if finished else self.masks.expected()

    def _report(self, state: State) -> None:
        step = int(state.timestamp.batch) - 1
        distance = float(self.masks.statistics(step)["distance"])
        message = "Pruning ends at %s; expected sizes were within %.2f%% of the target."
        log.log(logging.WARNING if distance > 0.05 else logging.INFO, message, self.target_shape, 100 * distance)

    def state_dict(self) -> dict[str, Any]:
        """Everything that resuming and shearing need, in tensors and plain types."""
        return {
            **super().state_dict(),
            "source": self.source_shape.to_dict(),
            "target": self.target_shape.to_dict(),
            "compat": self.compat,
            "selection": self.selection,
            "masks": self.masks.state_dict(),
            **({"importance": self._importance.state_dict()} if self._importance else {}),
        }

    def load_state_dict(self, state: dict[str, Any], strict: bool = False) -> None:
        """Continue from :meth:`state_dict`.

        Raises:
            InputError: the checkpoint was pruned from or to another shape.
        """
        for role, shape in (("source", self.source_shape), ("target", self.target_shape)):
            saved = ModelShape.from_dict(state[role])
            if saved != shape:
                raise InputError(
                    f"The checkpoint's {role} shape is {saved}, this run's is {shape}. Use the same target."
                )
        for name in ("compat", "selection"):
            if state[name] != getattr(self, name):
                raise InputError(
                    f"The checkpoint was made with {name}={state[name]}, this run has {getattr(self, name)}."
                )
        self.masks.load_state_dict(state["masks"])
        if self._importance:
            self._importance.load_state_dict(state["importance"])
