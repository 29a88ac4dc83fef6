"""The hub is asked once whether it is there, and not at all for what is here."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from llmshearing.errors import InputError
from llmshearing.models import hub
from llmshearing.models.config import read_config
from llmshearing.models.hub import hub_options


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No answer of before, and no proxy."""
    monkeypatch.setattr(hub.urllib.request, "getproxies", dict)
    hub.is_reachable.cache_clear()
    yield
    hub.is_reachable.cache_clear()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What listens where the hub should be."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{listening.getsockname()[1]}")
        yield listening


def test_a_hub_that_is_there_is_used(server: socket.socket) -> None:
    assert hub_options("some/model") == {}


def test_a_hub_that_is_not_there_is_asked_once(server: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    server.close()
    assert hub_options("some/model") == {"local_files_only": True}
    monkeypatch.setattr(socket, "create_connection", None)  # would fail if it were called
    assert hub_options("another/model") == {"local_files_only": True}


def test_a_folder_is_asked_nobody_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", None)
    assert hub_options(str(tmp_path)) == {}


def test_behind_a_proxy_the_proxy_is_asked(server: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    server.close()
    monkeypatch.setattr(hub.urllib.request, "getproxies", lambda: {"http": "http://proxy:8080"})
    assert hub_options("some/model") == {}


def test_without_the_hub_a_model_that_is_not_here_is_one_line(server: socket.socket) -> None:
    server.close()
    with pytest.raises(InputError, match="'some/model' is neither a Hugging Face model folder nor a hub id") as refused:
        read_config("some/model")
    assert "\n" not in str(refused.value)
