"""A run's metrics as one JSON object per line, complete after a crash and free of duplicates after a resume."""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from composer.core import Event, State
from composer.loggers import Logger, LoggerDestination
from composer.utils import dist

from llmshearing.errors import InputError, naming
from llmshearing.fileio import write_text

log = logging.getLogger(__name__)

# Lines are written after these events. CheckpointSaver acts on BATCH_CHECKPOINT before any logger does, and must not
# save a batch whose line could still be lost, so the two events before it are among them.
_WRITE_AFTER = {
    Event.BATCH_END,
    Event.EVAL_AFTER_ALL,
    Event.BATCH_CHECKPOINT,
    Event.EPOCH_END,
    Event.EPOCH_CHECKPOINT,
    Event.FIT_END,
    Event.EVAL_STANDALONE_END,
}


class MetricsLog(LoggerDestination):
    """Append every logged metric to ``folder/metrics.jsonl``, on rank 0.

    One line is ``{"batch": int, "tokens": int, "time": unix seconds, "<key>": number, ...}``. ``batch`` counts the
    batches that were complete when the values were taken, so the loss of the first training batch and an evaluation
    after it both stand at 1 (Composer itself gives the former step 0). ``tokens`` is left out where the dataloader
    does not count them. What is logged during one batch becomes one line where possible; a reader merges lines of the
    same batch. NaN and infinities, which JSON has not, are the strings ``"nan"``, ``"inf"`` and ``"-inf"``.

    Lines are written before each checkpoint and when each batch ends, so a killed run loses at most the current batch.
    A run that resumes at batch b first drops the lines after b, which it will write again. A run that starts at batch
    0 in a folder that holds an older curve renames that one to ``metrics.<unix time>.jsonl``.

    Args:
        folder: the run's folder; created where needed.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / "metrics.jsonl"
        self._state: State | None = None
        self._training_batch: int | None = None
        self._batch = 0
        self._metrics: dict[str, float | str] = {}
        self._refused: set[str] = set()

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        super().run_event(event, state, logger)
        if event in _WRITE_AFTER:
            self._flush()

    def init(self, state: State, logger: Logger) -> None:
        self._state = state

    def after_load(self, state: State, logger: Logger) -> None:
        """Drop what the run is about to write again.

        Raises:
            InputError: the existing file is not a metrics log.
        """
        if dist.get_global_rank() != 0 or not self.path.exists():
            return
        batch = state.timestamp.batch.value
        if batch == 0:
            older = self.path.with_name(f"metrics.{int(self.path.stat().st_mtime)}.jsonl")
            self.path.rename(older)
            log.warning("The folder of this new run holds the metrics of an older one; they are now in '%s'.", older)
            return
        # A line without its end is one that the killed run could not finish.
        lines = [line for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True) if line[-1] == "\n"]
        try:
            kept = [line for line in lines if json.loads(line)["batch"] <= batch]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"'{self.path}' is not a metrics log ({error!r}). Move it away to resume.") from error
        write_text(self.path, "".join(kept))
        log.info("Resuming at batch %d: %d later lines of '%s' dropped.", batch, len(lines) - len(kept), self.path)

    def after_dataloader(self, state: State, logger: Logger) -> None:
        # The first event of a training batch: values logged from here on belong to the batch in hand.
        self._training_batch = state.timestamp.batch.value

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if dist.get_global_rank() != 0:
            return
        assert self._state is not None, "Composer runs Event.INIT before anything is logged"
        step = self._state.timestamp.batch.value if step is None else step
        batch = step + 1 if step == self._training_batch else step
        if batch != self._batch:
            self._flush()
            self._batch = batch
        for key, value in metrics.items():
            number = _as_json(value)
            if number is not None:
                self._metrics[key] = number
            elif key not in self._refused:
                self._refused.add(key)
                log.warning("The metric '%s' is no number (%s) and is left out of '%s'.", key, type(value), self.path)

    def upload_file(self, state: State, remote_file_name: str, file_path: Path, *, overwrite: bool) -> None:
        """Write what was logged before a checkpoint, which is saved before :meth:`run_event` of its event."""
        self._flush()

    def close(self, state: State, logger: Logger) -> None:
        self._flush()

    def _flush(self) -> None:
        if not self._metrics:
            return
        assert self._state is not None
        tokens = self._state.timestamp.token.value
        record = {"batch": self._batch, **({"tokens": tokens} if tokens else {}), "time": time.time(), **self._metrics}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
        self._metrics = {}


def _as_json(value: Any) -> float | str | None:
    """A number as JSON can hold it; None for anything else."""
    if isinstance(value, torch.Tensor) and value.numel() != 1:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else repr(number)
