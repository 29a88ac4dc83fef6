"""``python -m llmshearing.architecture``: the support matrix of the method card, with the recipes below the folder."""

from __future__ import annotations

import sys
from pathlib import Path

from llmshearing.architecture.support import recipes_by_family, support_matrix

if __name__ == "__main__":
    sys.stdout.write(support_matrix(recipes_by_family(Path("yamls/prune"))) + "\n")
