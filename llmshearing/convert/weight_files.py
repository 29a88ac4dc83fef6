"""Write safetensors shards piece by piece, so that memory holds neither a shard nor a whole tensor."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: ``make`` is called when its turn comes and must give its values in order, in parts."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Iterable[Tensor]]

    @property
    def num_bytes(self) -> int:
        """Size of the data."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_shards(folder: Path, entries: Sequence[Entry], *, max_shard_bytes: int) -> None:
    """Write ``model.safetensors``, or numbered shards with an index where the data exceeds ``max_shard_bytes``.

    The format: an 8-byte little-endian header length, a JSON header with dtype, shape and offsets, then the data.
    """
    shards: list[list[Entry]] = [[]]
    filled = 0
    for entry in entries:
        if shards[-1] and filled + entry.num_bytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled += entry.num_bytes
    if len(shards) == 1:
        _write_shard(folder / "model.safetensors", shards[0])
        return
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / name, shard)
        weight_map.update({entry.name: name for entry in shard})
    index = {"metadata": {"total_size": sum(entry.num_bytes for entry in entries)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_shard(path: Path, entries: Sequence[Entry]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for entry in entries:
        end = position + entry.num_bytes
        header[entry.name] = {
            "dtype": DTYPES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [position, end],
        }
        position = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # data starts aligned
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)))
        file.write(encoded)
        for entry in entries:
            written = 0
            for part in entry.make():
                assert part.dtype == entry.dtype, entry.name
                written += file.write(part.contiguous().view(-1).view(torch.uint8).numpy().data)
            assert written == entry.num_bytes, entry.name
