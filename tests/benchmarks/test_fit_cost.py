"""The benchmark of a fit measures a real one, and its arithmetic is that of the shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import fit
from benchmarks.steps import SMALL
from llmshearing.pruning.fit import Reconstruction
from llmshearing.pruning.target import resolve_target


def test_a_step_is_a_whole_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (size,) = SMALL
    fit.build(tmp_path / size, size)
    yielded: list[str] = []
    whole = Reconstruction.fit

    def watched(self: Reconstruction, batches: list[torch.Tensor]) -> object:
        for name, tensor in whole(self, batches):
            yielded.append(name)
            yield name, tensor

    monkeypatch.setattr(Reconstruction, "fit", watched)
    fit.make_step(size, str(tmp_path), "fit")()
    assert {"model.embed_tokens.weight", "model.layers.0.mlp.down_proj.weight", "lm_head.weight"} <= set(yielded)
    assert not any(name.startswith("model.layers.1.") for name in yielded)  # half of two layers


def test_what_7_b_needs_fits_a_gpu_of_24_gb() -> None:
    target = resolve_target(fit.LLAMA_7B, fit.TO_2_7B)
    assert (fit.LLAMA_7B.num_parameters(), target.num_parameters()) == (6_738_415_616, 2_701_560_320)
    needs = fit.arithmetic(fit.LLAMA_7B, target, 64 * 2048)
    assert needs["streams"] == 64 * 2048 * (2 * 4096 + 2560) * 4
    assert needs["streams"] + needs["weights"] + needs["gram"] < 12e9
