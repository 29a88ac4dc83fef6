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

from llmshearing.architecture.config import check_prunable
from llmshearing.architecture.shapes import ModelShape
from llmshearing.errors import InputError
from llmshearing.pruning.chooser import Chooser
from llmshearing.pruning.functional import Pruning, make_chooser
from llmshearing.pruning.monitor import check_health, report_end
from llmshearing.pruning.scores import Scores
from llmshearing.pruning.settings import Settings
from llmshearing.pruning.state import current
from llmshearing.pruning.still_weights import StillWeights, drop_gradients, forget_empty_state
from llmshearing.pruning.target import groups_to_prune
from llmshearing.pruning.times import warmup_and_search

log = logging.getLogger(__name__)


class TargetedPruning(Algorithm):
    """Learn which layers, heads, neurons and hidden dimensions to keep, until exactly the target shape is left.

    Sheared LLaMA (Xia et al., 2024), section 2.1. Works in any :class:`~composer.trainer.Trainer` around a
    :class:`~composer.models.HuggingFaceModel` (so also :class:`~llmshearing.ComposerLlama`) of the LLaMA family. Masks
    and multipliers have their own optimizer; the user's optimizer, schedule, clipping and checkpoint keys stay as
    they are. Sampled masks are on the model only while a batch trains. Between batches, for evaluation, prediction and
    whatever callbacks do, masks are deterministic: of one before the first batch and until units are chosen by
    importance, then of the size expected so far, and from the last batch on of exactly the target shape.

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
            ``search``, 8 batches if that is ``None``), ``'scores'`` or ``'random'`` (from the first batch on).
        search: time for the choice, like ``warmup``; ``'1dur'`` leaves the training to a run on the sheared model.
        compat: ``'paper'`` (multipliers per layer) or ``'upstream'`` (as the original code: one pair per dimension).
        seed: of the masks' noise, and of the choice at random: any whole number from 0 on.
        scores: the file of ``python -m llmshearing.score`` that chooses, with selection ``'scores'``.

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
        scores: str | None = None,
    ) -> None:
        self.settings = Settings(target, lr, lr_schedule, betas, warmup, selection, search, compat, seed, scores)
        self._pruning: Pruning
        self._weights = StillWeights()
        self._chosen_after: int | None = None  # batches of search
        self._lr_factor = 1.0

    @property
    def masks(self) -> Chooser:
        """What chooses the units."""
        return self._pruning.masks

    @property
    def source_shape(self) -> ModelShape:
        """Shape of the model."""
        return self._pruning.source

    @property
    def target_shape(self) -> ModelShape:
        """Shape that is left of it."""
        return self._pruning.target

    def __repr__(self) -> str:
        return f"TargetedPruning({self.settings})"

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
            Event.PREDICT_START,
            Event.FIT_END,
        )

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Run the step of ``event``, see :meth:`match`."""
        if event == Event.INIT:
            self._build(state)
        elif event == Event.BEFORE_TRAIN_BATCH:  # again on every retry of automatic microbatching
            self._begin(state)
        elif event == Event.AFTER_TRAIN_BATCH:
            self._weights.release()
            if self._pruning.searches:
                drop_gradients(state.model)
        elif event == Event.BATCH_END:
            self._learn(state, logger)
        else:
            if event == Event.FIT_START:
                self._resolve_times(state)
            self._pruning.show(finished=_finished(state))
            if event == Event.FIT_END:
                self._end(state)

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
        model, settings = state.model.model, self.settings
        source = ModelShape.from_hf_config(model.config)
        target, groups = groups_to_prune(source, settings.target, selection=settings.selection)
        check_prunable(model.config.to_dict(), target)
        device = state.device.tensor_to_device(torch.empty(0)).device
        masks = make_chooser(
            groups,
            settings.selection,
            lr=settings.lr,
            betas=settings.betas,
            compat=settings.compat,
            seed=settings.seed,
            scores=None if settings.scores is None else self._scores(settings.scores, model, source),
            device=device,
        )
        self._pruning = Pruning(model, source, target, masks, device)
        if settings.search is not None:
            self._pruning.search_steps = 0  # how many, is known at FIT_START
        log.info(
            "Pruning from %s (%d parameters) to %s (%d parameters).",
            source,
            source.num_parameters(),
            target,
            target.num_parameters(),
        )

    def _scores(self, path: str, model: Any, source: ModelShape) -> Mapping[str, Tensor]:
        scores, embedding = Scores.load(path), model.get_input_embeddings().weight.detach()
        if embedding.is_meta:  # the weights come later, to this rank or to all
            log.warning("Whether the scores in '%s' are of this model cannot be told before it has weights.", path)
        else:
            scores.check_model(source, embedding, str(model.config.name_or_path or "the model"))
        return scores.units

    def _resolve_times(self, state: State) -> None:
        """Times given as shares of the run need its length, which Composer knows only when fitting."""
        search = self.settings.search
        self.masks.warmup_steps, search_steps = warmup_and_search(self.settings.warmup, search, state)
        self._pruning.search_steps = None if search is None else search_steps
        if self._pruning.searches and (start := int(state.timestamp.batch)) >= search_steps:
            raise InputError(
                f"search is '{search}', but the checkpoint at batch {start} had not ended its own: lengthen it."
            )

    def _begin(self, state: State) -> None:
        batch = int(state.timestamp.batch)
        if batch == self._chosen_after:
            forget_empty_state(state.optimizers)
        self._pruning.draw(batch)
        if self.settings.lr_schedule == "follow":  # before schedulers step
            group = state.optimizers[0].param_groups[0]
            self._lr_factor = group["lr"] / group.get("initial_lr", group["lr"])
        if self._pruning.searches:
            self._weights.hold(state.model)

    def _learn(self, state: State, logger: Logger) -> None:
        # At BATCH_END rather than before the optimizer's step, which automatic microbatching may run twice.
        step = int(state.timestamp.batch) - 1
        searched = self._pruning.searches
        values = self._pruning.learn(step, lr_factor=self._lr_factor, finished=_finished(state))
        if searched and not self._pruning.searches:
            self._chosen_after = step + 1
        check_health(step, self._log(values, logger), self.masks, self.settings)

    def _log(self, values: Mapping[str, Tensor | float], logger: Logger) -> dict[str, float]:
        device = self.masks.device
        numbers = [torch.as_tensor(value, dtype=torch.float32, device=device) for value in values.values()]
        metrics = dict(zip(values, torch.stack(numbers).tolist(), strict=True))  # one transfer for all
        logger.log_metrics({f"pruning/{name}": value for name, value in metrics.items()})
        return metrics

    def _end(self, state: State) -> None:
        if self._pruning.searches:
            raise InputError(
                f"search is '{self.settings.search}', but the run of {state.max_duration} ended after "
                f"{int(state.timestamp.batch)} batches, before units were chosen. Shorten the search or train longer."
            )
        report_end(int(state.timestamp.batch) - 1, self.masks, self.target_shape)

    def state_dict(self) -> dict[str, Any]:
        """Everything that resuming and shearing need, in tensors and plain types."""
        return {
            **super().state_dict(),
            "source": self.source_shape.to_dict(),
            "target": self.target_shape.to_dict(),
            "compat": self.settings.compat,
            "selection": self.settings.selection,
            "settings": self.settings.state_dict(),
            "chosen_after": self._chosen_after,
            "masks": self.masks.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], strict: bool = False) -> None:
        """Continue from :meth:`state_dict`; says which settings differ and take effect from here on.

        Raises:
            InputError: the checkpoint was pruned from or to another shape, or in a way that cannot go on with this one.
        """
        for role, shape in (("source", self.source_shape), ("target", self.target_shape)):
            saved = ModelShape.from_dict(state[role])
            if saved != shape:
                raise InputError(
                    f"The checkpoint's {role} shape is {saved}, this run's is {shape}. Use the same target."
                )
        for name in ("compat", "selection"):
            if state[name] != (own := getattr(self.settings, name)):
                raise InputError(f"The checkpoint was made with {name}={state[name]}, this run has {own}.")
        self.masks.load_state_dict(current(state)["masks"])
        self._chosen_after = state.get("chosen_after")
        if "settings" in state:  # older checkpoints have none
            self.settings.compare(state["settings"], decided=self.masks.chosen is not None)


def _finished(state: State) -> bool:
    return state.max_duration is not None and state.timestamp >= state.max_duration
