"""Small prepared data, and trainers on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from composer import Trainer

from tests.data.helpers import write_domain
from tests.data.training import Recorder, make_trainer

Make = Callable[..., tuple[Trainer, Recorder]]


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


@pytest.fixture
def eval_data(make_data: Callable[..., Path]) -> Path:
    """A few sequences of the same domains."""
    return make_data(code=5, web=3, books=4)


@pytest.fixture
def make(data: Path, eval_data: Path) -> Iterator[Make]:
    """Returns a function that makes trainers, see ``make_trainer``, and closes them at the end of the test."""
    trainers = []

    def build(**settings: Any) -> tuple[Trainer, Recorder]:
        recorder = Recorder()
        trainers.append(make_trainer(data, eval_data, recorder, **settings))
        return trainers[-1], recorder

    yield build
    for trainer in trainers:
        trainer.close()
