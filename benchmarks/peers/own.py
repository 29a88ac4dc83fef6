"""``python -m benchmarks.peers.own WAY JOB OUT``: our cuts, and one by another project's scores, as in ``foreign``.

JOB also names ``data``, what ``data_prep/prepare.py`` wrote, and ``given``, the sizes that were asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.measure import measured
from benchmarks.quality.run import FITTED, SCORED
from llmshearing.architecture.axes import HEADS, HIDDEN, INTERMEDIATE, KV_HEADS, LAYERS
from llmshearing.architecture.shapes import ModelShape
from llmshearing.convert.commands import shear
from llmshearing.convert.rotate import rotate
from llmshearing.data.prepared import rows_in_turns
from llmshearing.fileio import read_json
from llmshearing.models.pretrained import load_pretrained
from llmshearing.pruning.scores import Scores, all_groups, mark_of
from llmshearing.pruning.scoring import losses_without_layers
from llmshearing.score import score_model

AT_ONCE = 8  # sequences
NORMS = ("layernorm", "model.norm")  # of the residual stream, not of heads
Job = dict[str, Any]


def minitron(job: Job, out: Path) -> dict[str, Any]:
    """Units by Minitron's activation scores, layers by the loss without each."""
    model: Any = load_pretrained(job["model"]).eval()
    shape = ModelShape.from_hf_config(model.config)
    longest = model.config.max_position_embeddings
    rows = rows_in_turns(job["data"], SCORED, vocab_size=shape.vocab_size, longest=longest)
    scores = minitron_scores(model, rows.split(AT_ONCE))
    scores.save(out.parent / "scores.safetensors")
    shear(job["model"], out, scores=out.parent / "scores.safetensors", target=job["given"])
    return {"layers kept": read_json(out / "shearing.json")["kept"]["layers"]}


@torch.no_grad()
def minitron_scores(model: nn.Module, batches: Sequence[Tensor]) -> Scores:
    """Scores after *Compact Language Models via Pruning and Knowledge Distillation*, arXiv 2407.14679, section 2.2.

    A head's score is the L2 norm of what it gives to ``o_proj``, a neuron's the activation that ``down_proj`` reads,
    a hidden dimension's what norms put out; each taken as a size, mean over a sequence, L2 over sequences (and summed
    over norms). Key-value groups have the sum of their heads. Not re-implemented: cutting in several rounds, and
    adding heads that go to those that stay.

    Args:
        model: a ``transformers`` causal LM with ``o_proj``, ``down_proj`` and modules whose names end in ``norm``.
        batches: token ids, (sequences, length) each, all of one shape.
    """
    shape = ModelShape.from_hf_config(model.config)  # type: ignore[arg-type]
    squares: dict[str, Tensor] = {}

    def see(name: str, sizes: Tensor) -> None:
        """Take sizes of units, (sequences, length, units)."""
        squares[name] = squares.get(name, torch.zeros(())) + sizes.mean(1).square().sum(0)

    def see_heads(name: str) -> Callable[..., None]:
        return lambda _, inputs: see(name, inputs[0].unflatten(-1, (-1, shape.head_dim)).norm(dim=-1))

    def see_neurons(name: str) -> Callable[..., None]:
        return lambda _, inputs: see(name, inputs[0].abs())

    def see_hidden(name: str) -> Callable[..., None]:
        return lambda _, inputs, output: see(name, output.abs())

    hooks = []
    for name, module in model.named_modules():
        if name.endswith("o_proj"):
            hooks.append(module.register_forward_pre_hook(see_heads(name)))
        elif name.endswith("down_proj"):
            hooks.append(module.register_forward_pre_hook(see_neurons(name)))
        elif name.endswith(NORMS):
            hooks.append(module.register_forward_hook(see_hidden(name)))
    try:
        for ids in batches:
            model(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()

    def seen(kind: str | tuple[str, ...]) -> Tensor:
        return torch.stack([size.sqrt() for name, size in squares.items() if name.endswith(kind)])

    heads = seen("o_proj").unflatten(-1, (shape.num_key_value_heads, -1))
    found = {
        LAYERS: losses_without_layers(model, batches),
        HIDDEN: seen(NORMS).sum(0),
        INTERMEDIATE: seen("down_proj"),
        KV_HEADS: heads.sum(-1),
        HEADS: heads,
    }
    units: dict[str, Tensor] = {
        group.dimension: found[group.dimension].view(group.shape) for group in all_groups(shape)
    }
    return Scores(shape, units, mark_of(model.get_input_embeddings().weight.detach()))  # type: ignore[operator]


def scored(job: Job, out: Path) -> dict[str, Any]:
    """Our scores alone."""
    return _shear(job["model"], job, out)


def fitted(job: Job, out: Path) -> dict[str, Any]:
    """The source rotated, then our scores and our fit."""
    rotate(job["model"], out.parent / "rotated", data=job["data"])
    return _shear(str(out.parent / "rotated"), job, out, fit=job["data"], fit_sequences=FITTED)


def _shear(model: str, job: Job, out: Path, **fit: Any) -> dict[str, Any]:
    scores = out.parent / "scores.safetensors"
    score_model(model, scores, data=job["data"], num_sequences=SCORED, dtype=job["dtype"])
    shear(model, out, scores=scores, target=job["given"], **fit)
    return {"layers kept": read_json(out / "shearing.json")["kept"]["layers"]}


WAYS: dict[str, Callable[[Job, Path], dict[str, Any]]] = {"minitron": minitron, "scored": scored, "fitted": fitted}


def main() -> None:
    """The command line; see the module."""
    name, place, out = sys.argv[1:]
    job = read_json(place)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    measured(lambda: WAYS[name](job, Path(out) / "model"), Path(out) / "cut.json")


if __name__ == "__main__":
    main()
