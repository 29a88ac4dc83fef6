"""Text of this repository as the demo's domains."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import REPOSITORY

DOMAINS = ("bible", "code", "news", "parliament", "wikipedia")


def write_domains(corpus: Path) -> None:
    """``corpus/<domain>/text.jsonl``, every fifth source file each."""
    files = [*sorted(REPOSITORY.glob("llmshearing/**/*.py")), *sorted(REPOSITORY.glob("data_prep/*.py"))]
    for number, domain in enumerate(DOMAINS):
        (corpus / domain).mkdir(parents=True)
        texts = [file.read_text() for file in files[number :: len(DOMAINS)]]
        lines = [json.dumps({"text": text}) for text in texts if text]
        (corpus / domain / "text.jsonl").write_text("\n".join(lines))
