"""``python -m llmshearing.recipe_keys``: every key of a recipe as a Markdown page, from what checks and reads them."""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Sequence

from llmshearing.data.dataset import DynamicStreamingDataset
from llmshearing.errors import cli
from llmshearing.registry import COMPONENTS, resolve
from llmshearing.schema import KEYS, REQUIRED

_HEAD = """# Recipe keys

Made by `python -m llmshearing.recipe_keys` from what checks and reads recipes. An unknown key, or a value of another
kind, is refused before anything is built. Every key can be overridden on the command line: `section.key=value`.
"""
_OWN = "llmshearing."
_GIVEN = {"self", "tokenizer", "batch_size", "device_batch_size", "domains"}  # by the trainer


def page() -> str:
    """The page: the keys, the names that sections know, and the settings of each of our own components."""
    lines = [_HEAD, *_table(("key", "default", "value", "what it is"), _keys()), "## Names\n"]
    names = ((f"`{kind}`", ", ".join(f"`{name}`" for name in known)) for kind, known in COMPONENTS.items())
    lines += _table(("section", "names"), names)
    for kind, known in COMPONENTS.items():
        for name, path in known.items():
            if path.startswith(_OWN):
                lines += [
                    f"## `{kind}`: `{name}`\n",
                    *_table(("setting", "default", "what it is"), _settings(kind, name)),
                ]
            if name == "dynamic_streaming":
                rows = _rows(DynamicStreamingDataset)
                lines += [f"## `{kind}.dataset`\n", *_table(("setting", "default", "what it is"), rows)]
    return "\n".join(lines).rstrip() + "\n"


def _keys() -> Iterator[tuple[str, ...]]:
    for name, key in KEYS.items():
        default = "required" if key.default is REQUIRED else f"`{_yaml(key.default)}`"
        yield f"`{name}`", default, key.kind.expected, key.doc


def _settings(kind: str, name: str) -> Iterator[tuple[str, ...]]:
    return _rows(resolve(kind, name))


def _rows(component: type | object) -> Iterator[tuple[str, ...]]:
    """The arguments of a class or function that a recipe sets, with what its docstring says of them."""
    documented = arguments_of(inspect.getdoc(component) or "")
    for name, parameter in inspect.signature(component).parameters.items():  # type: ignore[arg-type]
        if name not in _GIVEN:
            default = "required" if parameter.default is parameter.empty else f"`{_yaml(parameter.default)}`"
            yield f"`{name}`", default, documented[name]


def arguments_of(docstring: str) -> dict[str, str]:
    """What the section ``Args:`` of a docstring says of each argument, on one line."""
    match = re.search(r"^Args:\n((?:[ ]{4}.*\n?|\n)+)", docstring, re.MULTILINE)
    found: dict[str, str] = {}
    name = ""
    for line in (match[1] if match else "").splitlines():
        if begin := re.match(r" {4}(\w[\w, ]*): (.*)", line):
            name = begin[1]
            found |= dict.fromkeys(name.split(", "), begin[2])
        elif name and line.strip():
            found |= {part: f"{found[part]} {line.strip()}" for part in name.split(", ")}
    return {name: _markdown(text) for name, text in found.items()}


def _markdown(text: str) -> str:
    """A docstring's text: without roles, and with values as YAML writes them."""
    text = re.sub(r":\w+:`(?:~[\w.]*\.|\.)?(\w[^`]*)`", r"`\1`", text.replace("``", "`"))
    return re.sub(r"`'([^'`]*)'`", r"`\1`", text).replace("`None`", "`null`")


def _yaml(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(list(value) if isinstance(value, tuple) else value)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [list(header), ["---"] * len(header), *map(list, rows)]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in cells] + [""]


@cli
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module."""
    argparse.ArgumentParser(prog="python -m llmshearing.recipe_keys", description=__doc__).parse_args(arguments)
    sys.stdout.write(page())


if __name__ == "__main__":
    main()
