"""Models and data that several modules here look at; nobody writes to them."""

from __future__ import annotations

import pytest

from tests.downstream.helpers import save
from tests.models import make_model
from tests.repeats import learned, repeating, write


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """``knows``, a model that repeats; ``random``, one of random weights; ``data`` of two domains."""
    folder = tmp_path_factory.mktemp("downstream")
    write(folder / "data/eval/one", repeating(80, seed=100))
    write(folder / "data/eval/two", repeating(40, seed=101))
    return {
        "knows": save(learned(), folder / "knows"),
        "random": save(make_model("llama3", seed=1), folder / "random"),
        "data": str(folder / "data"),
    }
