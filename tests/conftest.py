"""Fixtures that several test modules use."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.forkserver import ForkServer
from tests.object_store import Store, environment, serving

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def flush_denormals() -> None:
    """Denormal numbers make small CPU training runs an order of magnitude slower."""
    torch.set_flush_denormal(True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and golden numbers beside the repository; tests that need it skip without it."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "golden").is_dir():
        pytest.skip(f"no folder of golden numbers beside the repository ({folder.name}/golden)")
    return folder


@pytest.fixture(scope="session")
def forked() -> Iterator[ForkServer]:
    """Starts commands without the seconds in which Python imports libraries; see tests.forkserver."""
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """An empty object store with a bucket ``bucket``, that this process and those it starts find as ``s3://bucket``."""
    with serving() as running:
        for name, value in environment(running).items():
            monkeypatch.setenv(name, value)
        yield running


@contextmanager
def no_more_than(size: int) -> Iterator[None]:
    """Writing more than so many bytes to a file fails, as on a full disk; also in processes started here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def heed_signals() -> None:
    """Undo what nohup, or a shell for its background jobs, passes on to all that they start."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
