"""Small prepared data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.helpers import write_domain


@pytest.fixture(scope="session")
def make_data(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Returns a function that writes ``root/<domain>/`` with so many samples each, once per set of sizes."""
    made: dict[tuple[tuple[str, int], ...], Path] = {}

    def make(**samples: int) -> Path:
        key = tuple(samples.items())
        if key not in made:
            made[key] = tmp_path_factory.mktemp("mds")
            for index, (domain, count) in enumerate(samples.items()):
                write_domain(made[key] / domain, index, count)
        return made[key]

    return make


@pytest.fixture
def data(make_data: Callable[..., Path]) -> Path:
    """Three domains, enough for the rounds of most tests."""
    return make_data(code=300, web=200, books=100)
