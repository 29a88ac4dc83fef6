"""``llmshearing COMMAND ...``, or ``python -m llmshearing COMMAND ...``: every command of the package by one name.

``llmshearing COMMAND --help`` says what each takes. ``llmshearing train -n 8 RECIPE.yaml`` is
``composer -n 8 -m llmshearing.train RECIPE.yaml``; the others are modules, that is ``python -m llmshearing.NAME``.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence

from llmshearing.errors import cli, unknown_name

_CONVERT = "llmshearing.convert"
# name -> module, words in front of the user's own, and what it is for
COMMANDS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "prepare": ("llmshearing.data_prep.prepare", (), "text to training data"),
    "reference-loss": ("llmshearing.reference_loss", (), "losses of a model by domain, or predicted ones"),
    "choose-shape": ("llmshearing.choose_shape", (), "shapes within a budget, ranked by what the cut costs"),
    "new-recipe": ("llmshearing.new_recipe", (), "both recipes for a model, a target and a budget of tokens"),
    "recipe-keys": ("llmshearing.recipe_keys", (), "every key of a recipe, as a page"),
    "rotate": (_CONVERT, ("rotate",), "turn a model so that fewer hidden dimensions carry more"),
    "score": ("llmshearing.score", (), "what the units of a model are worth"),
    "train": ("composer.cli.launcher", ("-m", "llmshearing.train"), "prune, or train on, by a recipe"),
    "shear": (_CONVERT, ("shear",), "a pruning checkpoint, or a model by its scores, to a folder of the target shape"),
    "export": (_CONVERT, ("export",), "a dense checkpoint to a Hugging Face folder"),
    "text-quality": ("llmshearing.text_quality", (), "agreement with the source, and choices among continuations"),
    "inference-speed": ("llmshearing.inference_speed", (), "tokens per second where a model is served"),
    "downstream": ("llmshearing.downstream", (), "suites of downstream tasks, by lm-eval, as one table"),
    "tune": ("llmshearing.tune", (), "teach a model to answer, by trl and peft"),
    "answers": ("llmshearing.answers", (), "answers of several models side by side, for a judge"),
    "report": ("llmshearing.report", (), "a run as one HTML file"),
}


def usage() -> str:
    """What there is."""
    width = max(map(len, COMMANDS))
    lines = (f"  {name:{width}}  {what}" for name, (_, _, what) in COMMANDS.items())
    return "\n".join(["usage: llmshearing COMMAND ...", "", *lines, ""])


def words(name: str, given: Sequence[str]) -> tuple[str, list[str]]:
    """The module of a command, and what it is given; the launcher's own ``-n N`` stands in front.

    Raises:
        InputError: there is no such command.
    """
    if name not in COMMANDS:
        raise unknown_name("command", name, COMMANDS)
    module, before, _ = COMMANDS[name]
    if name == "train" and given[:1] == ["-n"]:
        return module, [*given[:2], *before, *given[2:]]
    return module, [*before, *given]


@cli
def main() -> None:
    """Run the command that is named."""
    name, *given = sys.argv[1:] or [""]
    if name in ("", "-h", "--help"):
        sys.stdout.write(usage())
        raise SystemExit(0 if name else 2)
    module, arguments = words(name, given)
    sys.argv = [f"llmshearing {name}", *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
