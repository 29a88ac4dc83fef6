"""What comes next, as the last line of a command says it."""

from __future__ import annotations

import shlex
import sys


def command(*words: object) -> str:
    """Words as a shell takes them; those in capitals are for the reader to fill in."""
    return shlex.join(map(str, words))


def say_next(*words: object) -> None:
    """Write the command that comes next to stderr, where it is in nobody's pipe."""
    sys.stderr.write(f"Next: {command(*words)}\n")
