"""What importing costs: the mathematics and the conversion must not load Composer."""

from __future__ import annotations

import subprocess
import sys

import pytest

import llmshearing


@pytest.mark.parametrize(
    "modules",
    ["llmshearing.pruning, llmshearing.data.proportions", "llmshearing.convert.commands", "llmshearing.pruning.shear"],
)
def test_composer_stays_out(modules: str) -> None:
    code = f"import {modules}, sys; assert 'composer' not in sys.modules; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", llmshearing.__all__)
def test_public_names_are_there(name: str) -> None:
    assert getattr(llmshearing, name).__name__ == name


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        llmshearing.Nothing  # noqa: B018
