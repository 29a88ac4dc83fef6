from __future__ import annotations

import re

from llmshearing.recipe_keys import arguments_of, page
from llmshearing.schema import KEYS
from tests.conftest import REPOSITORY


def test_the_page_of_keys_is_of_this_version() -> None:
    written = (REPOSITORY / "docs" / "recipe_keys.md").read_text(encoding="utf-8")
    assert written == page(), "write it again: python -m llmshearing.recipe_keys > docs/recipe_keys.md"


def test_every_key_and_every_setting_is_explained() -> None:
    rows = [line.strip("| ").split(" | ") for line in page().splitlines() if line.startswith("| `")]
    assert [row[0] for row in rows[: len(KEYS)]] == [f"`{key}`" for key in KEYS]
    assert all(len(cell) > 3 for row in rows for cell in row[-1:])
    assert {"`target`", "`proportions`", "`reference_losses`", "`teacher`", "`pretrained`"} <= {row[0] for row in rows}


def test_arguments_are_read_from_docstrings() -> None:
    docstring = """Head.

Args:
    one: of `None` or ``'two'``,
        and more.
    two, three: both; see :class:`~a.B`.

Raises:
    four: not an argument.
"""
    assert arguments_of(docstring) == {
        "one": "of `null` or `two`, and more.",
        "two": "both; see `B`.",
        "three": "both; see `B`.",
    }
    assert not re.search(r"`'|:class:", page())
