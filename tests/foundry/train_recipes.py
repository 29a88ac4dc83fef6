"""Trains recipes under LLM Foundry, one after another in this process: its imports take longer than these runs.

Reads a JSON list of ``[recipe, [override, ...]]`` from stdin; run by Foundry's Python, in a folder to write to.
"""

from __future__ import annotations

import json
import sys

from llmfoundry.command_utils.train import train_from_yaml

for recipe, overrides in json.load(sys.stdin):
    train_from_yaml(recipe, overrides)
    print(f"trained {recipe}", flush=True)
