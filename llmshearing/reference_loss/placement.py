"""A model on more than one device: on several GPUs, in host memory, on disk, as accelerate lays it out."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmshearing.errors import InputError
from llmshearing.ranks import world_size

_SIZE = re.compile(r"\d+(\.\d+)?[KMG]i?B")


@dataclass(frozen=True)
class Placement:
    """How a model is laid out: first on GPUs, what does not fit there in host memory, and the rest on disk.

    Attributes:
        max_memory: that weights may take, by number of a GPU or ``'cpu'``, such as ``{0: '70GB', 'cpu': '400GB'}``;
            ``None``: as much as is free. The rest is for activations.
        offload: folder for weights of ``*.bin`` files that are left for the disk; safetensors are read where they lie.
    """

    max_memory: Mapping[int | str, str] | None = None
    offload: str | None = None

    def options(self) -> dict[str, Any]:
        """Of ``from_pretrained``.

        Raises:
            InputError: accelerate is not installed, or there are several ranks.
        """
        if importlib.util.find_spec("accelerate") is None:
            raise InputError("--device-map auto needs the package 'accelerate'. Install llmshearing[real].")
        if world_size() > 1:
            raise InputError("--device-map auto is for one process: leave it out, or start without a launcher.")
        memory = dict(self.max_memory) if self.max_memory else None
        return {"device_map": "auto", "max_memory": memory, "offload_folder": self.offload}


def placement(device_map: str | None, max_memory: Sequence[str] | None, offload: str | None) -> Placement | None:
    """What the command line says; ``None`` is one device.

    Raises:
        InputError: options that go with ``--device-map`` alone, or no size.
    """
    if device_map is None:
        if max_memory is not None or offload is not None:
            raise InputError("--max-memory and --offload are for --device-map auto. Add it.")
        return None
    sizes: dict[int | str, str] = {}
    for word in max_memory or ():
        device, _, size = word.partition("=")
        if not (device == "cpu" or device.isdecimal()) or not _SIZE.fullmatch(size):
            raise InputError(
                f"--max-memory has '{word}'; give a GPU's number or cpu, and a size, such as 0=70GB cpu=400GB."
            )
        sizes[device if device == "cpu" else int(device)] = size
    return Placement(sizes or None, offload)
