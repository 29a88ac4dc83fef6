"""Any value at any key of a recipe gives a dry run or one line of error."""

from __future__ import annotations

import contextlib
import io
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmshearing.recipe import KEYS
from llmshearing.train import main
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.badinput

RECIPE: dict[str, Any] = yaml.safe_load((REPOSITORY / "yamls" / "debug" / "prune.yaml").read_text())
SECONDS = 60  # for an example


def paths(settings: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Of every key, of those of sections too."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            yield (*above, key)
            yield from paths(value, (*above, key))


PATHS = list(dict.fromkeys([*paths(RECIPE), *((key,) for key in KEYS)]))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.integers(),
    st.sampled_from([2**31, 2**32, 2**63, -(2**63), 10**30]),
    st.floats(allow_subnormal=False),  # which tests flush to zero
    st.text(max_size=20),
    st.sampled_from(
        ["", " ", "a\nb", "10ba", "-1ba", "1e400ba", "0.5dur", "nan", "1tok", "${seed}", "${", "\u2603", ".", "/"]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=4,
)


def with_value(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The recipe, with ``value`` at ``path``."""
    recipe: dict[str, Any] = yaml.safe_load(yaml.safe_dump(RECIPE))
    section = recipe
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    return recipe


@pytest.fixture(scope="module")
def in_world(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file for the recipe; the working directory is one in which the recipe's own values work."""
    before = Path.cwd()
    os.chdir(world)
    yield tmp_path_factory.mktemp("recipes") / "recipe.yaml"
    os.chdir(before)


def too_slow(number: int, frame: FrameType | None) -> None:
    raise AssertionError(f"not done after {SECONDS} s")


@settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(path=st.sampled_from(PATHS), value=VALUES)
def test_any_value_of_any_key(in_world: Path, path: tuple[str, ...], value: Any) -> None:
    recipe = with_value(path, value)
    in_world.write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    said = io.StringIO()
    code: Any = 0
    before = signal.signal(signal.SIGALRM, too_slow)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            main([str(in_world), "dry_run=true"])
    except SystemExit as end:
        code = end.code
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert code in (0, 2)
    errors = [line for line in said.getvalue().splitlines() if line.startswith("error: ")]
    assert len(errors) == (code == 2)
