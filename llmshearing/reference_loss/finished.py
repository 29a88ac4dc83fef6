"""The losses of domains that are finished before the rest, so that a killed evaluation goes on at the next one."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from llmshearing import storage
from llmshearing.data.domain import DomainDataset
from llmshearing.errors import InputError
from llmshearing.reference_loss.results import read, unfinished, write
from llmshearing.storage import Place

log = logging.getLogger(__name__)

# What decides a model's losses, by suffix.
_SUFFIXES = (".safetensors", ".bin", ".json")


class Finished:
    """The domains that are evaluated, kept beside the place of the result until that is written.

    Args:
        out: place of the result. ``None``: nothing is kept.
        about: all that decides the numbers, as JSON has it; what is kept of anything else is begun anew.

    Attributes:
        domains: by name, ``nats`` (their sum) and ``tokens``.
    """

    def __init__(self, out: Place | None, about: dict[str, Any]) -> None:
        self._place, self._about = unfinished(out) if out is not None else None, about
        self.domains: dict[str, dict[str, Any]] = {}
        if self._place is not None and storage.info(self._place) is not None:
            found = read(self._place)
            if isinstance(found, dict) and found.get("about") == about:
                self.domains = found["domains"]
                log.info("'%s' has the losses of %s.", self._place, ", ".join(self.domains))
            else:
                log.warning("'%s' is of another model, other data or other settings and is begun anew.", self._place)

    def add(self, domain: str, nats: float, tokens: int) -> None:
        """Keep one more; where that fails the evaluation goes on without."""
        self.domains[domain] = {"nats": nats, "tokens": tokens}
        if self._place is not None:
            try:
                write(self._place, {"about": self._about, "domains": self.domains})
            except (OSError, InputError) as error:
                log.warning("What is evaluated cannot be kept in '%s': %s", self._place, error)


def digest_of_model(name: str, config: PretrainedConfig) -> list[Any]:
    """What tells a model from another one without reading its weights: files, sizes and times, or the hub's commit."""
    folder = Path(name)
    if not folder.is_dir():
        return [name, getattr(config, "_commit_hash", None)]
    files = (path for path in sorted(folder.iterdir()) if path.suffix in _SUFFIXES and path.is_file())
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def digest_of_data(dataset: DomainDataset) -> str:
    """A digest of all of a domain's tokens, in order, however they are stored."""
    digest = hashlib.blake2b(digest_size=16)
    for index in range(len(dataset)):
        ids = dataset[index]["input_ids"]
        digest.update(len(ids).to_bytes(8, "little") + ids.numpy().tobytes())
    return digest.hexdigest()
