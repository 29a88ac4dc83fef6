"""Times in a pruning run's settings."""

from __future__ import annotations

from composer.core import Time, TimeUnit

from llmshearing.errors import InputError


def parse_time(name: str, text: str | None) -> Time | None:
    """A time in batches or as a share of a run.

    Raises:
        InputError: it is neither.
    """
    if text is None:
        return None
    try:
        time = Time.from_timestring(str(text))
    except ValueError as error:
        raise InputError(f"{name} is '{text}', which is not a time such as '640ba' or '0.2dur'.") from error
    if time.unit not in (TimeUnit.BATCH, TimeUnit.DURATION):
        raise InputError(f"{name} is '{text}'; give it in batches ('640ba') or as a share of the run ('0.2dur').")
    return time


def steps(name: str, text: str | None, duration: Time | None) -> int:
    """A time in batches; ``None`` is 0.

    Args:
        name: of the setting, for messages.
        text: such as ``'640ba'`` or ``'0.2dur'``.
        duration: of the run.

    Raises:
        InputError: a share of a run whose length is not known in batches.
    """
    time = parse_time(name, text)
    if time is None or time.unit == TimeUnit.BATCH:
        return time.value if time is not None else 0
    if duration is None or duration.unit != TimeUnit.BATCH:
        raise InputError(
            f"{name} is '{text}', a share of the run, but max_duration is '{duration}'. Give one in batches."
        )
    return round(time.value * duration.value)
