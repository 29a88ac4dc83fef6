"""What comes next, as the last line of a command says it."""

from __future__ import annotations

import shlex
import sys


def command(template: str, **values: object) -> str:
    """A command whose ``{names}`` are replaced by values as a shell takes them; words in capitals are the reader's."""
    return template.format(**{name: shlex.quote(str(value)) for name, value in values.items()})


def say_next(template: str, **values: object) -> None:
    """Write the command that comes next to stderr, where it is in nobody's pipe; see :func:`command`."""
    sys.stderr.write(f"Next: {command(template, **values)}\n")
