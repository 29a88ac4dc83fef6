"""A real run on two FSDP2 ranks: one reads the weights, and both forms of its checkpoint convert to the same folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from llmshearing.convert.commands import shear
from tests.conftest import REPOSITORY
from tests.convert.tokenizers import make_tokenizer
from tests.forkserver import ForkServer
from tests.models import make_model

pytestmark = pytest.mark.dist


@pytest.mark.parametrize("family", ["llama3", "qwen2-tied"])
def test_two_ranks_load_from_one_and_convert_alike(tmp_path: Path, forked: ForkServer, family: str) -> None:
    model = make_model(family)
    model.save_pretrained(tmp_path / "source", max_shard_size="20KB")
    model.config.save_pretrained(tmp_path / "config")
    make_tokenizer().save_pretrained(tmp_path / "source")
    composer = str(Path(sys.executable).with_name("composer"))
    done = forked.run(
        [composer, "-n", "2", "-m", "tests.convert.distributed_run", tmp_path],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]

    began = torch.load(tmp_path / "begin.pt", weights_only=True)
    source = model.state_dict()
    assert [name for name in source if not torch.equal(began[f"model.{name}"], source[name])] == []

    folder = tmp_path / "checkpoints" / "latest-rank0.pt"
    assert {file.name for file in folder.iterdir()} == {".metadata", "__0_0.distcp", "__1_0.distcp"}
    shear(folder, tmp_path / "from-sharded")
    shear(tmp_path / "full" / "ep0-ba2-rank0.pt", tmp_path / "from-file")
    files = {file.name: file.read_bytes() for file in (tmp_path / "from-file").iterdir()}
    assert files == {file.name: file.read_bytes() for file in (tmp_path / "from-sharded").iterdir()}
    text = "the license"
    tokenizers = [AutoTokenizer.from_pretrained(tmp_path / name) for name in ("source", "from-file")]
    assert tokenizers[0](text).input_ids == tokenizers[1](text).input_ids
