"""Bytes that are not those that were saved: the checkpoint is refused, or what is written is bit for bit the same."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llmshearing.convert.commands import export, shear
from llmshearing.errors import InputError
from tests.convert.checkpoints import sharded

NAME = "model.model.layers.1.mlp.down_proj.weight"


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def flip(path: Path, places: list[int]) -> None:
    data = bytearray(path.read_bytes())
    for place in places:
        data[place] ^= 0x01  # a low bit of a float: stays finite, near and plausible
    path.write_bytes(data)


def places_of(checkpoint: Path, path: Path) -> list[int]:
    """64 bytes within the values of one tensor, wherever it is stored."""
    wanted = torch.load(checkpoint, weights_only=False)["state"]["model"][NAME].numpy().tobytes()
    begin = path.read_bytes().index(wanted)
    return list(range(begin, begin + 256, 4))


@pytest.mark.parametrize("form", ["file", "folder"])
def test_values_that_changed_are_refused(
    tmp_path: Path, dense_checkpoint: Path, refused: Callable[..., str], form: str
) -> None:
    if form == "file":
        broken = shutil.copy(dense_checkpoint, tmp_path / "broken.pt")
        flip(broken, places_of(dense_checkpoint, broken))
    else:
        broken = sharded(dense_checkpoint, tmp_path / "broken")
        (shard,) = broken.glob("*.distcp")
        flip(shard, places_of(dense_checkpoint, shard))
    assert "do not have the checksum they were saved with" in refused(broken, command="export")


def test_tensors_that_share_a_record_are_checked_and_exact(
    tmp_path: Path, dense_checkpoint: Path, refused: Callable[..., str]
) -> None:
    content = torch.load(dense_checkpoint, weights_only=False)
    model = content["state"]["model"]
    flat = torch.cat([tensor.flatten() for tensor in model.values()])
    parts = flat.split([tensor.numel() for tensor in model.values()])
    content["state"]["model"] = {
        name: part.view(tensor.shape) for (name, tensor), part in zip(model.items(), parts, strict=True)
    }
    torch.save(content, tmp_path / "flat.pt")
    export(tmp_path / "flat.pt", tmp_path / "one")
    export(dense_checkpoint, tmp_path / "two")
    assert content_of(tmp_path / "one") == content_of(tmp_path / "two")
    flip(tmp_path / "flat.pt", places_of(dense_checkpoint, tmp_path / "flat.pt"))
    assert "do not have the checksum" in refused(tmp_path / "flat.pt", command="export")


def test_without_checksums_it_converts_and_says_so(
    tmp_path: Path, dense_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(torch.load(dense_checkpoint, weights_only=False), tmp_path / "plain.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    export(tmp_path / "plain.pt", tmp_path / "one")
    assert caplog.text.count("was saved without checksums") == 1
    export(dense_checkpoint, tmp_path / "two")
    assert caplog.text.count("was saved without checksums") == 1
    assert content_of(tmp_path / "one") == content_of(tmp_path / "two")


def damage(data: bytes, dice: random.Random) -> bytes:
    """One of the ways in which a file goes wrong, at random places."""
    way, made = dice.randrange(5), bytearray(data)
    if way == 0:
        return data[: dice.randrange(len(data))]
    if way == 1:  # a block that was never written
        start = dice.randrange(len(data))
        made[start : start + 512] = bytes(len(made[start : start + 512]))
    elif way == 2:  # a block that was written elsewhere
        source, start = (dice.randrange(max(1, len(data) - 512)) for _ in range(2))
        made[start : start + 512] = data[source : source + 512]
    else:  # a few bits; the end of the file, where its directory is, as often as the rest
        first = max(0, len(data) - 8000) if way == 3 else 0
        for _ in range(dice.choice((1, 1, 3, 64))):
            made[dice.randrange(first, len(data))] ^= 1 << dice.randrange(8)
    return bytes(made)


@pytest.mark.parametrize("form", ["file", "folder", "metadata"])
def test_random_damage_is_refused_or_does_not_matter(tmp_path: Path, checkpoint: Path, form: str) -> None:
    if form == "file":
        broken = file = shutil.copy(checkpoint, tmp_path / "broken.pt")
    else:
        broken = sharded(checkpoint, tmp_path / "broken")
        file = broken / ".metadata" if form == "metadata" else next(broken.glob("*.distcp"))
    whole = file.read_bytes()
    shear(broken, tmp_path / "wanted")
    wanted, kept = content_of(tmp_path / "wanted"), sorted(path.name for path in tmp_path.iterdir())
    refusals, one_line = 0, True
    trials = 25 if form == "folder" else 40
    for seed in (*range(trials), 381):  # 381 spoils the count of disks in a zip's directory
        file.write_bytes(damage(whole, random.Random(seed)))
        try:
            shear(broken, tmp_path / "out")
        except InputError as error:
            refusals += 1
            one_line &= "\n" not in str(error)
            assert sorted(path.name for path in tmp_path.iterdir()) == kept, seed
        else:
            assert content_of(tmp_path / "out") == wanted, seed
            shutil.rmtree(tmp_path / "out")
    assert one_line
    assert refusals > trials / 4
