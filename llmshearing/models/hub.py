"""The Hugging Face hub, asked once whether it is there.

Without network ``huggingface_hub`` tries every file of a model five times, half a minute each, and says so on stderr.
"""

from __future__ import annotations

import functools
import logging
import socket
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub

from llmshearing.fileio import refuse_address

log = logging.getLogger(__name__)

_SECONDS = 5.0


def hub_options(name: str) -> dict[str, Any]:
    """What to add to a ``from_pretrained(name)``: only files that are here, where the hub cannot be reached.

    Raises:
        InputError: ``name`` is an address of an object store, which transformers does not read.
    """
    refuse_address(name, "a model or tokenizer is read from a folder", "Copy it there, and give the folder.")
    if Path(name).is_dir() or is_reachable():
        return {}
    return {"local_files_only": True}


@functools.cache
def is_reachable() -> bool:
    """Whether the hub's host takes a connection; behind a proxy it is taken to."""
    address = urlsplit(huggingface_hub.constants.ENDPOINT)
    if huggingface_hub.constants.HF_HUB_OFFLINE or address.scheme in urllib.request.getproxies():
        return True
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        with socket.create_connection((address.hostname, port), timeout=_SECONDS):
            return True
    except OSError as error:
        log.debug("%s cannot be reached: %s", address.geturl(), error)
        return False
