"""Loading tokenizers, and that nothing is added to or read into a text."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, ByT5Tokenizer

from llmshearing.data_prep.tokenizer import SlowEncoder, Tokenizer, load_tokenizer
from llmshearing.errors import InputError


def test_sentencepiece_and_huggingface_give_the_same_ids(
    sentencepiece_model: Path, huggingface_folder: Path, texts: list[str], unicode_texts: list[str]
) -> None:
    sentencepiece, huggingface = load_tokenizer(str(sentencepiece_model)), load_tokenizer(str(huggingface_folder))
    assert sentencepiece.encoder.encode(texts + unicode_texts) == huggingface.encoder.encode(texts + unicode_texts)
    assert (sentencepiece.vocab_size, sentencepiece.bos_id, sentencepiece.eos_id) == (600, 1, 2)
    assert (huggingface.vocab_size, huggingface.bos_id, huggingface.eos_id) == (600, 1, 2)


def test_control_tokens_in_a_text_stay_text(huggingface_folder: Path, sentencepiece_model: Path) -> None:
    for name in (huggingface_folder, sentencepiece_model):
        (ids,) = load_tokenizer(str(name)).encoder.encode(["end</s><s>"])
        assert not {1, 2} & set(ids)


def test_a_maximum_length_in_the_file_cuts_nothing(huggingface_folder: Path, tmp_path: Path) -> None:
    shell = AutoTokenizer.from_pretrained(huggingface_folder)
    whole = load_tokenizer(str(huggingface_folder)).encoder.encode(["word " * 50])
    shell.backend_tokenizer.enable_truncation(4)
    shell.backend_tokenizer.enable_padding(length=500)
    shell.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).encoder.encode(["word " * 50]) == whole


def test_a_tokenizer_without_fast_version_works(tmp_path: Path) -> None:
    ByT5Tokenizer().save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert isinstance(tokenizer.encoder, SlowEncoder)
    assert tokenizer.encoder.encode(["ab", "é"]) == [[100, 101], [198, 172]]  # bytes, after 3 special tokens
    assert tokenizer.bos_id is None


def test_copies_for_workers_encode_alike(
    sentencepiece_model: Path, huggingface_folder: Path, unicode_texts: list[str]
) -> None:
    for name in (sentencepiece_model, huggingface_folder):
        encoder = load_tokenizer(str(name)).encoder
        assert pickle.loads(pickle.dumps(encoder)).encode(unicode_texts) == encoder.encode(unicode_texts)


def test_the_files_are_hashed(sentencepiece_model: Path, huggingface_folder: Path) -> None:
    for name, files in ((sentencepiece_model, {"small.model"}), (huggingface_folder, {"tokenizer.json"})):
        hashes = load_tokenizer(str(name)).sha256
        assert files <= set(hashes)
        folder = name if name.is_dir() else name.parent
        for file, digest in hashes.items():
            assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == digest


def test_the_token_type_holds_the_vocabulary(tokenizer: Tokenizer) -> None:
    def of_size(vocab_size: int) -> Tokenizer:
        return Tokenizer("big", tokenizer.encoder, vocab_size, 1, 2, {})

    assert of_size(65_536).token_type() == "uint16"
    assert of_size(65_537).token_type() == "uint32"
    assert of_size(65_536).token_type("uint32") == "uint32"
    with pytest.raises(InputError, match=r"65,537 tokens.*--token-type uint32"):
        of_size(65_537).token_type("uint16")


def test_a_missing_or_wrong_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.model"):
        load_tokenizer(str(tmp_path / "missing.model"))
    (tmp_path / "wrong.model").write_bytes(b"not a model")
    with pytest.raises(InputError, match=r"wrong\.model"):
        load_tokenizer(str(tmp_path / "wrong.model"))
    with pytest.raises(InputError, match="sentencepiece"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("of_model", "warned"), [(2, False), ([5, 2], False), (None, False), (5, True), ([5, 7], True)]
)
def test_another_end_of_text_than_the_models_is_said(
    huggingface_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, of_model: Any, warned: bool
) -> None:
    folder = shutil.copytree(huggingface_folder, tmp_path / "model")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": of_model}))
    assert load_tokenizer(str(folder)).eos_id == 2
    assert ("Documents will end with token 2" in caplog.text) == warned
