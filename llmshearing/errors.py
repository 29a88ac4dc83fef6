"""One kind of error for bad input, and the one place that turns it into exit code 2."""

from __future__ import annotations

import errno
import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

log = logging.getLogger(__name__)

# Names and not classes: to import torch or safetensors only to tell their errors apart would take seconds.
_OF_LIBRARIES = {
    "safetensors._safetensors_rust.SafetensorError": "A safetensors file is truncated or damaged",
    "omegaconf.errors.OmegaConfBaseException": "A recipe cannot be read",
    "_pickle.UnpicklingError": "A file is damaged, or holds what could run code when read",
}
# Beginnings of torch's messages about files, which are of no class of their own.
_OF_ARCHIVES = {
    "PytorchStreamReader failed": "A file that torch.save wrote is truncated or damaged",
    "[enforce fail at inline_container.cc": "A file of torch.save could not be read or written whole",
}
_REMEDIES = {
    errno.ENOSPC: "Free some space there and run the command again.",
    errno.EDQUOT: "Free some of your quota there and run the command again.",
    errno.EACCES: "Choose another place, or have its permissions changed.",
    errno.EPERM: "Choose another place, or have its permissions changed.",
    errno.EROFS: "Choose a place that can be written.",
    errno.EISDIR: "Give a file.",
    errno.ENOTDIR: "Give a folder.",
    errno.ENOENT: "Check the path.",
    errno.EEXIST: "Choose another place, or move that one away.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.EMFILE: "Raise the limit (ulimit -n).",
}


class InputError(ValueError):
    """Something the user gave is wrong. The message names the cause, the value and the remedy."""


class UntrustedError(InputError):
    """A file would have to run code to be read."""


class IncompleteError(InputError):
    """Some of the files of one thing are not here."""


class LostError(RuntimeError):
    """Other processes of the same run are gone. Nobody's input is wrong, and the command can be started again."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not one of ``known``: suggests the nearest one and lists all."""
    known = sorted(known)
    near = get_close_matches(str(name), known, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return InputError(f"Unknown {kind} '{name}'.{hint} Known: {', '.join(known)}.")


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let an ``OSError`` that names no file, as a full disk's, name ``path``."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


@contextmanager
def below(section: str, keys: Container[str]) -> Iterator[None]:
    """Let an :class:`InputError` that begins with one of ``keys`` name it as a recipe does, below ``section``."""
    try:
        yield
    except InputError as error:
        unknown, name, rest = re.findall(r"(?s)\A(Unknown |)(\w*)(.*)", str(error))[0]
        if name not in keys:
            raise
        raise type(error)(f"{unknown}{section}.{name}{rest}") from error


def one_line(text: object) -> str:
    """A message without line breaks, but for those before the entries of a list (``\\n  - ...``)."""
    return re.sub(r"\s*\n(?!  - )\s*", " ", str(text).strip())


def cli(main: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command's ``main``: what the user or the machine got wrong is one line on stderr and exit code 2.

    That is an :class:`InputError`, an ``OSError`` (a full disk, a file that may not be read, no network) and a file
    that a library finds damaged. Ctrl-C is exit code 130. A :class:`LostError` is one line and exit code 1. Anything
    else is a mistake of the program and keeps its traceback; the others have theirs in the log at level debug.
    """

    @functools.wraps(main)
    def wrapped(*args: object, **kwargs: object) -> None:
        try:
            main(*args, **kwargs)
        except KeyboardInterrupt:
            log.debug("Interrupted.", exc_info=True)
            sys.stderr.write("interrupted\n")
            raise SystemExit(130) from None
        except LostError as error:
            log.debug("The error's traceback:", exc_info=True)
            sys.stderr.write(f"error: {error}\n")
            raise SystemExit(1) from None
        except Exception as error:
            if (message := about_input(error)) is None:
                raise
            log.debug("The error's traceback:", exc_info=True)
            sys.stderr.write(f"error: {one_line(message)}\n")
            raise SystemExit(2) from None

    return wrapped


def about_input(error: Exception) -> str | None:
    """The line for an error that is not the program's own mistake; ``None`` for those that are."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError):
        return _of_system(error)
    for kind in type(error).__mro__:
        if (what := _OF_LIBRARIES.get(f"{kind.__module__}.{kind.__qualname__}")) is not None:
            return f"{what}: {error}"
    if isinstance(error, RuntimeError):
        for beginning, what in _OF_ARCHIVES.items():
            if str(error).startswith(beginning):
                return f"{what}: {error}"
    return None


def _of_system(error: OSError) -> str:
    if error.errno is None or error.strerror is None:  # a library's, with a message of its own
        return str(error) or type(error).__name__
    paths = [f"'{os.fsdecode(path)}'" for path in (error.filename, error.filename2) if isinstance(path, (str, bytes))]
    about = f"{' and '.join(paths)}: " if paths else ""
    remedy = f" {_REMEDIES[error.errno]}" if error.errno in _REMEDIES else ""
    return f"{about}{error.strerror}.{remedy}"
