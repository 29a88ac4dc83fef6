"""A line on how training goes: loss, speed, time left, and each domain's loss when it is evaluated."""

from __future__ import annotations

import logging
import statistics
import time
from typing import Any

from composer.core import State
from composer.loggers import Logger, LoggerDestination
from composer.utils import dist

from llmshearing.duration import in_words

log = logging.getLogger(__name__)

_LOSS, _DISTANCE = "loss/train/total", "pruning/distance"
_EVALUATED = ("metrics/", "/LanguageCrossEntropy")


class ProgressLine(LoggerDestination):
    """Log a line every few seconds, on rank 0, in place of a bar that log files do not show.

    The first batch has one, the last has one, and those between where :attr:`SECONDS` or a hundredth of the time so
    far have passed, up to a minute. Tokens per second are of the batches since the line before, without evaluation;
    the time left has evaluations in it, at the rate so far.
    """

    SECONDS = 10.0

    def __init__(self) -> None:
        self._latest: dict[str, float] = {}
        self._losses: dict[str, float] = {}
        self._begin = self._last = time.monotonic()  # of this process' training; when the line before was written
        self._done = 0.0  # share of the run that was trained before
        self._tokens = 0
        self._evaluation = 0.0  # seconds since the line before

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Keep what a line shows."""
        prefix, suffix = _EVALUATED
        for key, value in metrics.items():
            if key in (_LOSS, _DISTANCE):
                self._latest[key] = float(value)
            elif key.startswith(prefix) and key.endswith(suffix) and not key.startswith("metrics/train/"):
                self._losses[key.removeprefix(prefix).removesuffix(suffix)] = float(value)

    def fit_start(self, state: State, logger: Logger) -> None:
        """Measure from here."""
        self._begin = self._last = time.monotonic()
        self._done, self._tokens, self._evaluation = _share(state), state.timestamp.token.value, 0.0

    def eval_start(self, state: State, logger: Logger) -> None:
        """Take the time."""
        self._evaluation -= time.monotonic()

    def eval_end(self, state: State, logger: Logger) -> None:
        """Take the time."""
        self._evaluation += time.monotonic()

    def eval_after_all(self, state: State, logger: Logger) -> None:
        """Log the domains' losses."""
        self._write_losses(state)

    def eval_standalone_end(self, state: State, logger: Logger) -> None:
        """The same for ``Trainer.eval``."""
        self._write_losses(state)

    def batch_end(self, state: State, logger: Logger) -> None:
        """Log a line where it is time to."""
        now = time.monotonic()
        pause = min(max(self.SECONDS, (now - self._begin) / 100), 60.0)
        first, share = state.timestamp.batch.value == 1, _share(state)
        if not (first or share >= 1 or now - self._last >= pause):
            return
        self._write(state, now, share)
        self._last, self._tokens, self._evaluation = now, state.timestamp.token.value, 0.0

    def _write(self, state: State, now: float, share: float) -> None:
        parts = [f"batch {state.timestamp.batch.value:,}, {share:.0%}"]
        if _LOSS in self._latest:
            parts.append(f"loss {self._latest[_LOSS]:.3f}")
        if (tokens := state.timestamp.token.value - self._tokens) > 0:
            seconds = now - self._last - self._evaluation
            parts.append(f"{tokens / max(seconds, 1e-9):,.0f} tokens/s")
        if _DISTANCE in self._latest:
            parts.append(f"{self._latest[_DISTANCE]:.1%} from the target shape")
        if self._done < share < 1:
            left = (now - self._begin) * (1 - share) / (share - self._done)
            parts.append(f"{in_words(left)} left")
        _log(": ".join((parts[0], ", ".join(parts[1:]))) if parts[1:] else parts[0])

    def _write_losses(self, state: State) -> None:
        if self._losses:
            losses = {**self._losses, "mean": statistics.mean(self._losses.values())}
            shown = ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
            _log(f"batch {state.timestamp.batch.value:,}, evaluated: {shown}")
        self._losses = {}


def _share(state: State) -> float:
    elapsed = state.get_elapsed_duration()
    return 0.0 if elapsed is None else min(elapsed.value, 1.0)


def _log(message: str) -> None:
    if dist.get_global_rank() == 0:
        log.info(message)
