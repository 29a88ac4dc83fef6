"""Data of repeated words, a model that has learned to say them again, and a real model beside what was cut of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from streaming import MDSWriter
from transformers import PreTrainedModel

from llmshearing.convert.commands import shear
from llmshearing.score import score_model
from tests.models import SIZES, make_model

LENGTH = 24


def write(folder: Path, rows: np.ndarray) -> Path:
    """Rows of token ids, (number, length), as an MDS folder."""
    with MDSWriter(out=str(folder), columns={"tokens": f"ndarray:uint16:{rows.shape[1]}"}) as writer:
        for row in rows:
            writer.write({"tokens": row.astype(np.uint16)})
    return folder


def repeating(number: int, *, seed: int) -> np.ndarray:
    """Sequences of one token each, (number, LENGTH)."""
    tokens = np.random.default_rng(seed).permutation(np.arange(3, SIZES["vocab_size"]))[:number]
    return np.repeat(tokens[:, None], LENGTH, axis=1)


def learned() -> PreTrainedModel:
    """A model that says again what it has just read."""
    model = make_model("llama3", initializer_range=0.05).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(40):
        ids = torch.from_numpy(repeating(32, seed=step))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def stories(shared: Path, folder: Path) -> tuple[str, str, Path]:
    """A model of stories, what is sheared from it in ``folder``, and data of its own stories there."""
    model, data = str(shared / "models/stories260K"), folder / "data"
    rows = np.load(shared / "golden/stories_self/rows.npy")[:192, :128]
    write(data / "train/stories", rows[:128])
    write(data / "eval/stories", rows[128:])
    score_model(model, folder / "scores.safetensors", data=data, num_sequences=8)
    target = {"hidden_size": 32, "intermediate_size": 86}
    shear(model, folder / "sheared", scores=folder / "scores.safetensors", target=target)
    return model, str(folder / "sheared"), data
