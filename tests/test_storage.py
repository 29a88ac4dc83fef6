"""Files by path and by address, against a real S3 interface that is slow, fails and cuts off."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmshearing import storage
from llmshearing.errors import InputError
from llmshearing.fileio import read_json
from tests.object_store import Store


@pytest.fixture(params=["path", "address"])
def place(request: pytest.FixtureRequest, tmp_path: Path, store: Store) -> str:
    """An empty folder, of this machine and of an object store."""
    # With what a folder may be called, and a URL not: a domain of C#, say.
    return str(tmp_path / "c#?") if request.param == "path" else "s3://bucket/some/c#?"


def test_what_is_written_is_read_again(place: str) -> None:
    storage.write_bytes(storage.join(place, "a", "b.bin"), b"hello world")
    assert storage.read_bytes(f"{place}/a/b.bin") == b"hello world"
    with storage.open_input(f"{place}/a/b.bin") as file:
        file.seek(6)
        assert file.read(3) == b"wor"
        assert file.size() == 11


def test_files_are_listed_by_their_names_below_a_folder_in_order(place: str) -> None:
    for name in ("b/2", "a", "b/1"):
        storage.write_bytes(f"{place}/{name}", name.encode())
    assert {name: found.bytes for name, found in storage.files_below(place).items()} == {"a": 1, "b/1": 3, "b/2": 3}
    assert list(storage.files_below(f"{place}/b")) == ["1", "2"]
    assert storage.files_below(f"{place}/none") == {}


def test_a_file_is_known_only_where_it_is(place: str) -> None:
    storage.write_bytes(f"{place}/folder/file", b"123")
    found = storage.info(f"{place}/folder/file")
    assert found is not None
    assert found.bytes == 3
    assert found.mtime_ns > 0
    assert storage.info(f"{place}/folder") is None
    assert storage.info(f"{place}/folder/other") is None


def test_removing_takes_a_file_or_a_folder_and_minds_nothing(place: str) -> None:
    for name in ("x", "y/1", "y/2", "yes"):
        storage.write_bytes(f"{place}/{name}", b"-")
    storage.remove(f"{place}/x")
    storage.remove(f"{place}/y")
    storage.remove(f"{place}/none")
    assert list(storage.files_below(place)) == ["yes"]


def test_files_are_copied_to_a_place_and_from_it(place: str, tmp_path: Path) -> None:
    data = bytes(range(256)) * 40_000  # more than one piece
    (tmp_path / "source").write_bytes(data)
    storage.upload(tmp_path / "source", f"{place}/copy.gz")  # a name that must not make it compressed
    storage.download(f"{place}/copy.gz", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    storage.copy(f"{place}/copy.gz", f"{place}/deep/copy")
    assert storage.read_bytes(f"{place}/deep/copy") == data


def test_json_is_written_and_read(place: str) -> None:
    value = {"a": [1, "ü", None]}
    storage.write_json(f"{place}/a.json", value)
    assert read_json(f"{place}/a.json") == value
    storage.write_bytes(f"{place}/a.json", b"{")
    with pytest.raises(InputError, match="a.json' is not valid JSON"):
        read_json(f"{place}/a.json")


def test_equal_contents_of_a_store_have_equal_tags(store: Store, tmp_path: Path) -> None:
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        storage.write_bytes(f"s3://bucket/{name}", content)
    a, b, c = (storage.entity_tag(f"s3://bucket/{name}") for name in "abc")
    assert a is not None
    assert a == b != c
    assert storage.entity_tag(tmp_path) is None


def test_a_place_is_an_address_by_its_scheme() -> None:
    assert [storage.is_remote(place) for place in ("s3://b/k", "gs://b/k", "/a/b", Path("s3:/b"))] == [True, True] + [
        False
    ] * 2
    with pytest.raises(InputError, match=r"'http://h/x' begins with http://, but only s3://, gs:// are known"):
        storage.is_remote("http://h/x")


def test_a_store_that_fails_for_a_while_is_asked_again(store: Store) -> None:
    store.fail(method="PUT", status=503, times=2)
    storage.write_bytes("s3://bucket/x", b"abc")
    store.fail(status=500, times=1)
    store.fail(status=503, times=1)
    assert storage.read_bytes("s3://bucket/x") == b"abc"


def test_an_answer_that_ends_early_is_never_taken_for_the_file(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "ATTEMPTS", 3)
    data = b"x" * 100_000
    storage.write_bytes("s3://bucket/x", data)
    store.fail(cut=1000, times=1)
    assert storage.read_bytes("s3://bucket/x") == data
    store.fail(cut=1000, times=100)
    with pytest.raises(InputError, match="'s3://bucket/x' cannot be reached"):
        storage.download("s3://bucket/x", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_file_whose_upload_fails_is_not_there(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    storage.write_bytes("s3://bucket/x", b"before")
    store.fail(method="PUT", status=403, times=100)
    store.fail(method="POST", status=403, times=100)
    with pytest.raises(InputError, match="s3://bucket/x.*AWS_PROFILE"):
        storage.write_bytes("s3://bucket/x", b"after" * 3_000_000)
    store.faults.clear()
    assert storage.read_bytes("s3://bucket/x") == b"before"


def test_missing_credentials_are_one_line(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.fail(method="HEAD", status=403, times=100)
    with pytest.raises(InputError, match="AWS_PROFILE, or AWS_ACCESS_KEY_ID") as error:
        storage.info("s3://bucket/x")
    assert "\n" not in str(error.value)
