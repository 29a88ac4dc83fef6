"""What an installed package brings along."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_it_takes_one_name_in_site_packages(tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (top_level,) = tmp_path.rglob("top_level.txt")
    assert top_level.read_text().split() == ["llmshearing"]
