"""The trainer's checkpoints, in a folder beside the output: whose they are, and which is whole."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from llmshearing.errors import InputError
from llmshearing.fileio import digest_of_files, read_json, remove, write_json
from llmshearing.run_folder import claim
from llmshearing.tune.encode import Example

log = logging.getLogger(__name__)

_SETTINGS = "settings.json"
# The trainer writes this file last.
_LAST_WRITTEN = "trainer_state.json"


def checkpoints_of(out: Path) -> Path:
    """The folder of a run's checkpoints until it is finished."""
    return out.with_name(f"{out.name}.checkpoints")


def day_of(folder: Path) -> date:
    """The day on which the run of a checkpoints' folder began, which chat templates may write; today, if there is none.

    Raises:
        InputError: its settings cannot be read.
    """
    place = folder / _SETTINGS
    found = read_json(place) if place.is_file() else None
    try:
        return date.fromisoformat(found["day"]) if isinstance(found, dict) else date.today()
    except (KeyError, TypeError, ValueError):  # of an earlier version, or no run: others say what is wrong
        return date.today()


def digest_of_examples(examples: Sequence[Example]) -> str:
    """A digest of ids and masks: of the chats, the template and the tokenizer in one."""
    content = json.dumps([[example.input_ids, example.completion_mask] for example in examples])
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def digest_of_weights(model_name: str, config: PretrainedConfig) -> str:
    """A digest of a folder's weights; of a model of the hub, its name and commit."""
    files = [path for pattern in ("*.safetensors", "*.bin") for path in sorted(Path(model_name).glob(pattern))]
    return digest_of_files(files) if files else f"{model_name} {getattr(config, '_commit_hash', None)}"


def open_checkpoints(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """Claim the folder for a run of these settings; the newest whole checkpoint in it, or ``None``.

    Checkpoints that a killed run left unfinished are removed.

    Raises:
        InputError: it is of a run with other settings or of no run, or another process trains there.
    """
    place = folder / _SETTINGS
    if folder.exists() and not place.is_file() and any(path.name != ".lock" for path in folder.iterdir()):
        raise InputError(f"'{folder}' is not of a tuning run. Move it away, or choose another --out.")
    claim(folder)
    if place.is_file():
        found = read_json(place)
        other = sorted(key for key in settings if not isinstance(found, dict) or found.get(key) != settings[key])
        if other:
            raise InputError(
                f"'{folder}' holds the checkpoints of a run with another {', '.join(other)}. Give the same, remove the "
                "folder to begin anew, or choose another --out."
            )
    else:
        write_json(place, settings)
    steps = {
        int(match[1]): path for path in folder.iterdir() if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    }
    for _, path in sorted(steps.items(), reverse=True):
        if _is_whole(path):
            log.info("Going on from '%s'.", path)
            return str(path)
        log.warning("Removed '%s', which a killed run left unfinished.", path)
        remove(path)
    return None


def _is_whole(checkpoint: Path) -> bool:
    try:
        return isinstance(read_json(checkpoint / _LAST_WRITTEN), dict)
    except InputError:
        return False
