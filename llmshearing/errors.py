"""One kind of error for bad input, and the one place that turns it into exit code 2."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Something the user gave is wrong. The message names the cause, the value and the remedy."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not one of ``known``: suggests the nearest one and lists all."""
    known = sorted(known)
    near = get_close_matches(str(name), known, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return InputError(f"Unknown {kind} '{name}'.{hint} Known: {', '.join(known)}.")


def cli(main: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command's ``main``: an :class:`InputError` becomes one line on stderr and exit code 2."""

    @functools.wraps(main)
    def wrapped(*args: object, **kwargs: object) -> None:
        try:
            main(*args, **kwargs)
        except InputError as error:
            sys.stderr.write(f"error: {error}\n")
            sys.exit(2)

    return wrapped
