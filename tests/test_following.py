"""Every command of the way to a model ends with the one that comes next."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from llmshearing.following import command
from tests.conftest import REPOSITORY
from tests.dry_runs import make_debug_data
from tests.forkserver import ForkServer

RECIPE = str(REPOSITORY / "yamls" / "debug" / "prune.yaml")


def test_words_are_quoted_for_a_shell() -> None:
    assert command("python {path} OUT", path=Path("a b")) == "python 'a b' OUT"


def test_each_command_names_the_next(forked: ForkServer, tmp_path: Path) -> None:
    """From prepared data to an exported model: what is named is there, and takes what was made."""
    make_debug_data(tmp_path)

    def following(*words: str) -> str:
        done = forked.run(words, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr[-2000:]
        (said,) = re.findall(r"Next: (.*)$", done.stdout + done.stderr, re.MULTILINE)
        (module,) = re.findall(r"-m (\S+)", said)
        assert importlib.util.find_spec(module)
        return said

    checkpoint = "checkpoints/latest-rank0.pt"
    small = ("max_duration=20ba", "save_overwrite=false")
    shear = following("composer", "-n", "1", "-m", "llmshearing.train", RECIPE, *small)
    assert shear == f"python -m llmshearing.convert shear runs/debug/prune/{checkpoint} runs/debug/sheared"
    assert following(*shear.split()) == "composer -m llmshearing.train RECIPE variables.sheared=runs/debug/sheared"
    after = (
        "model.config=null",
        "model.pretrained=runs/debug/sheared",
        "algorithms=null",
        "variables.run=runs/debug/on",
    )
    export = following("composer", "-n", "1", "-m", "llmshearing.train", RECIPE, *small, *after)
    assert export == f"python -m llmshearing.convert export runs/debug/on/{checkpoint} runs/debug/final"
    quality = following(*export.split())
    assert quality == "python -m llmshearing.text_quality runs/debug/final --source MODEL --data DATA"
    data = "runs/debug/data"
    score = following("python", "-m", "llmshearing.convert", "rotate", "runs/debug/final", "turned", "--data", data)
    assert score == f"python -m llmshearing.score turned SCORES --data {data}"
    scored = following(*score.replace("SCORES", "scores.safetensors").split())
    assert scored.startswith(
        "python -m llmshearing.convert shear turned OUT --scores scores.safetensors --target SIZES"
    )
    losses = ("--out", "losses.json")
    recipe = following("python", "-m", "llmshearing.reference_loss", "eval", "turned", data, *losses)
    assert recipe.startswith(f"python -m llmshearing.new_recipe turned --data {data} --parameters N ")
    shape = following("python", "-m", "llmshearing.choose_shape", "turned", "--parameters", "0.08e6")
    assert re.match(r"python -m llmshearing.new_recipe turned --data DATA --target \w+=\d+ .*--tokens TOKENS", shape)
