"""What a run that was killed while it wrote a checkpoint leaves behind."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from llmshearing.fileio import remove

log = logging.getLogger(__name__)

_BATCH = re.compile(r"ep\d+-ba(\d+)\b")


def remove_unfinished_checkpoints(folder: Path) -> None:
    """Remove checkpoints that are newer than the one that ``latest-rank0.pt`` links to.

    Composer links to a checkpoint once it is whole, and refuses to resume beside a newer one. Does nothing without
    the link: there is nothing to resume from then, and nothing says what is whole.

    Args:
        folder: where the run saves.
    """
    latest = folder / "latest-rank0.pt"
    found = _BATCH.search(latest.resolve().name) if latest.is_symlink() and latest.exists() else None
    if found is None:
        return
    for path in sorted(folder.iterdir()):
        other = _BATCH.match(path.name)
        if other is not None and int(other[1]) > int(found[1]):
            log.warning(
                "Removing '%s': the run ended while it was written. Resuming from '%s'.", path, latest.resolve().name
            )
            remove(path)
