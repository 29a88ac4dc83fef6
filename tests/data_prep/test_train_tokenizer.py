"""A tokenizer trained on a corpus."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from transformers import AutoTokenizer

from llmshearing.data_prep.train_tokenizer import main, sample_lines, train
from llmshearing.errors import InputError

WriteJsonl = Callable[..., Path]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, texts: list[str], write_jsonl: WriteJsonl) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_jsonl(folder / "code" / "a.jsonl", texts[:400])
    write_jsonl(folder / "more" / "a.jsonl", texts[400:])
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    out = tmp_path_factory.mktemp("trained") / "tokenizer"
    main([str(corpus), str(out), "--vocab-size", "512"])
    return out


def test_auto_tokenizer_loads_it_as_a_llama_like_one(trained: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained)
    assert len(tokenizer) == 512
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    encoded = tokenizer("Hello")
    assert encoded["input_ids"][0] == tokenizer.bos_token_id
    assert set(encoded) == {"input_ids", "attention_mask"}


def test_any_text_comes_back(trained: Path, texts: list[str], unicode_texts: list[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained)
    for text in texts[:100] + unicode_texts + ["    indented\n\t\ttabs   ", "12345"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_it_gives_the_ids_of_its_sentencepiece_model(trained: Path, texts: list[str], unicode_texts: list[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained)
    model = sentencepiece.SentencePieceProcessor(model_file=str(trained / "tokenizer.model"))
    everything = [*texts, *unicode_texts, "a" * 5000, " " * 100 + "x", "▁ already ▁▁marked", "\r\n \u2028"]
    assert tokenizer(everything, add_special_tokens=False)["input_ids"] == model.encode(everything)


def test_the_same_corpus_gives_the_same_files(trained: Path, corpus: Path, tmp_path: Path) -> None:
    train(corpus, tmp_path / "again", vocab_size=512, bytes_per_domain=2_000_000)
    files = sorted(path.name for path in trained.iterdir())
    assert {"tokenizer.json", "tokenizer.model", "tokenizer_config.json"} <= set(files)
    assert files == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in files:
        assert (trained / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_every_domain_is_sampled_evenly(tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    write_jsonl(tmp_path / "large" / "a.jsonl", [f"{'large' * 20}\n{number:05}" for number in range(4000)])
    write_jsonl(tmp_path / "small" / "a.jsonl", [f"{'small' * 20}\n\n{number:05}" for number in range(100)])
    lines = list(sample_lines(tmp_path, bytes_per_domain=50_000))
    assert lines == list(sample_lines(tmp_path, bytes_per_domain=50_000))
    assert sum(line.startswith("small") for line in lines) == 100  # less than asked for: all of it
    assert "" not in lines
    large = [line for line in lines if line not in {f"{number:05}" for number in range(100)} and "small" not in line]
    assert 30_000 < sum(map(len, large)) < 50_000
    numbers = [int(line) for line in large if line.isdigit()]
    assert max(numbers) > 3900  # from the whole file, and from every part of a document
    assert 300 < len(numbers) < 600


def test_too_little_text_and_existing_folders_are_refused(
    corpus: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="100000 tokens"):
        train(corpus, tmp_path / "out", vocab_size=100_000, bytes_per_domain=2_000_000)
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit) as stopped:
        main([str(corpus), str(trained), "--vocab-size", "512"])
    assert stopped.value.code == 2
    assert "--overwrite" in capsys.readouterr().err
    assert json.loads((trained / "tokenizer_config.json").read_text())["bos_token"] == "<s>"
