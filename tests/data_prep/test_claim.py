"""One run at a time in an output folder of an object store."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest

from llmshearing import storage
from llmshearing.data_prep import claim
from llmshearing.data_prep.claim import claimed
from llmshearing.errors import InputError
from llmshearing.fileio import read_json
from tests.object_store import Store

OUT, WORK, PLACE = "s3://bucket/out", "s3://bucket/out/.partial", "s3://bucket/out/.partial/claim.json"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "SETTLING", 0.05)
    monkeypatch.setattr(claim, "HEARTBEAT", 0.2)


def owner(host: str, process: int) -> dict[str, object]:
    return {"run": "0123", "host": host, "process": process}


def test_a_second_run_is_refused_until_the_first_ends(store: Store) -> None:
    refused = pytest.raises(InputError, match=f"Another run is preparing '{OUT}': .* s ago. Wait")
    with claimed(OUT, WORK), refused, claimed(OUT, WORK):
        pass
    with claimed(OUT, WORK) as check:
        check()
    assert storage.files_below(WORK) == {}


def test_a_claim_is_renewed_while_it_is_held(store: Store) -> None:
    with claimed(OUT, WORK):
        before = sum(request == ("PUT", "/bucket/out/.partial/claim.json") for request in store.requests)
        deadline = time.monotonic() + 20
        while (
            sum(method in ("PUT", "POST") and path.endswith("claim.json") for method, path in store.requests)
            < before + 4
        ):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_claim_of_a_process_that_has_ended_is_taken_over_at_once(store: Store) -> None:
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    storage.write_json(PLACE, owner(socket.gethostname(), int(ended.stdout)))
    with claimed(OUT, WORK) as check:
        check()
    storage.write_json(PLACE, owner(socket.gethostname(), os.getpid()))
    with pytest.raises(InputError, match="Another run"), claimed(OUT, WORK):
        pass


def test_a_claim_of_another_machine_is_taken_over_once_it_shows_no_sign_of_life(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_json(PLACE, owner("elsewhere", 1))
    with pytest.raises(InputError, match="elsewhere, .* if it was killed, begin again in"), claimed(OUT, WORK):
        pass
    monkeypatch.setattr(claim, "LEASE", 0.0)
    with claimed(OUT, WORK):
        pass


def test_a_run_whose_claim_was_taken_stops_and_leaves_it(store: Store) -> None:
    with claimed(OUT, WORK) as check:
        storage.write_json(PLACE, owner("elsewhere", 1))
        time.sleep(3 * claim.HEARTBEAT)
        with pytest.raises(InputError, match="Another run has taken"):
            check()
    assert read_json(PLACE) == owner("elsewhere", 1)
