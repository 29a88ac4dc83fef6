"""Reference losses on data that is compressed, or somewhere else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from llmshearing.errors import InputError
from llmshearing.reference_loss.evaluate import evaluate
from tests.test_reference_loss import write_domain

VOCABULARY, SEQUENCE = 32, 16


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_eval_reads_compressed_data_and_fetches_what_is_elsewhere(
    model_folder: Path, tmp_path: Path, compression: str | None
) -> None:
    store = tmp_path / "store"
    rows = np.random.default_rng(0).integers(0, VOCABULARY, (6, SEQUENCE)).astype(np.uint16)
    for domain in ("books", "web"):
        write_domain(store / "eval" / domain, rows, compression=compression)
    (store / "manifest.json").write_text(json.dumps({"domains": {"books": {}, "web": {}}}))
    here = evaluate(str(model_folder), store)
    for _ in range(2):  # the second time from the cache
        there = evaluate(str(model_folder), store, cache=tmp_path / "cache")
        assert there["losses"] == here["losses"]
    assert (tmp_path / "cache/eval/web/index.json").is_file()
    with pytest.raises(InputError, match="is not on this machine. Give --cache FOLDER"):
        evaluate(str(model_folder), "s3://bucket/data")
    with pytest.raises(InputError, match="cannot be opened: file:///nowhere/manifest.json"):
        evaluate(str(model_folder), "file:///nowhere", cache=tmp_path / "other")
