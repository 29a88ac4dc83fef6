"""Times in a pruning run's settings."""

from __future__ import annotations

import math
from typing import Any

from composer.core import State, Time, TimeUnit

from llmshearing.errors import InputError

_SEARCH_WARMUP = 0.4  # of the search


def parse_time(name: str, text: Any) -> Time | None:
    """A time in batches or as a share of a run; ``None`` is none.

    Raises:
        InputError: it is neither.
    """
    if text is None:
        return None
    try:
        time = Time.from_timestring(text) if isinstance(text, str) else None
    except (TypeError, ValueError, OverflowError):  # Composer's for '1.5ba', 'ten' and '1e999ba'
        time = None
    if time is None or not text[-1:].isalpha():  # Composer takes '4' for 40 seconds
        raise InputError(f"{name} is {text!r}, which is not a time such as '640ba' or '0.2dur'.")
    if time.unit not in (TimeUnit.BATCH, TimeUnit.DURATION):
        raise InputError(f"{name} is {text!r}; give it in batches ('640ba') or as a share of the run ('0.2dur').")
    largest = 1 if time.unit == TimeUnit.DURATION else math.inf
    if not 0 <= time.value <= largest:
        raise InputError(f"{name} is {text!r}; give batches from 0 on ('640ba'), or a share of 0 to 1 ('0.2dur').")
    return time


def run_length(state: State) -> int | None:
    """How many batches the run has in all; ``None`` where that is not known, as in a run of so many tokens."""
    duration = state.max_duration
    if duration is not None and duration.unit == TimeUnit.BATCH:
        return duration.value
    if duration is not None and duration.unit == TimeUnit.EPOCH and state.dataloader_len is not None:
        return duration.value * int(state.dataloader_len)
    return None


def steps(name: str, text: str | None, state: State) -> int:
    """A time in batches; ``None`` is 0.

    Args:
        name: of the setting, for messages.
        text: such as ``'640ba'`` or ``'0.2dur'``.
        state: of a trainer that fits, which has the length of the run.

    Raises:
        InputError: a share of a run whose length is not known in batches.
    """
    time = parse_time(name, text)
    if time is None or time.unit == TimeUnit.BATCH:
        return time.value if time is not None else 0
    if (length := run_length(state)) is None:
        raise InputError(
            f"{name} is '{text}', a share of the run, but max_duration is '{state.max_duration}'. Give one in batches."
        )
    return round(time.value * length)


def warmup_and_search(warmup: str | None, search: str | None, state: State) -> tuple[int, int]:
    """Both times in batches. Where there is a search, a warm-up of ``None`` is 0.4 of it.

    Raises:
        InputError: one is longer than what it is a part of.
    """
    search_steps, length = steps("search", search, state), run_length(state)
    warmup_steps = round(_SEARCH_WARMUP * search_steps) if warmup is None else steps("warmup", warmup, state)
    if search is not None:
        if not search_steps:
            raise InputError(f"search is '{search}', less than a batch of a run of {state.max_duration}: lengthen it.")
        if not warmup_steps < search_steps:
            raise InputError(f"search is '{search}', warmup '{warmup}': search must be the longer one.")
        if length is not None and search_steps > length:
            raise InputError(f"search is '{search}', longer than the run of {state.max_duration}: shorten it.")
    elif length is not None and warmup_steps >= length:
        raise InputError(f"warmup is '{warmup}', but the run has only {length} batches: shorten it.")
    return warmup_steps, search_steps
