"""The whole preparation: what it writes, what it refuses, and what it counts."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streaming import LocalDataset, StreamingDataset

from llmshearing.data_prep.output import work_folder
from llmshearing.data_prep.prepare import main, prepare
from llmshearing.data_prep.tokenizer import Tokenizer, load_tokenizer
from llmshearing.errors import InputError

WriteJsonl = Callable[..., Path]
SEQ_LEN = 64
EVAL_SEQUENCES = 3


@pytest.fixture
def corpus(tmp_path: Path, texts: list[str], unicode_texts: list[str], write_jsonl: WriteJsonl) -> Path:
    """Three domains; many texts stand several times in a file, in two files, and in two domains."""
    folder = tmp_path / "corpus"
    write_jsonl(folder / "code" / "a.jsonl", texts[:300] + texts[:50])
    write_jsonl(folder / "code" / "b.jsonl", texts[200:500])
    write_jsonl(folder / "copies" / "a.jsonl", texts[:150] * 2)
    write_jsonl(folder / "other" / "a.jsonl", unicode_texts + texts[500:700], key="content")
    return folder


def run(corpus: Path, out: Path, tokenizer: Tokenizer, **options: Any) -> dict[str, Any]:
    options = {"seq_len": SEQ_LEN, "eval_sequences": EVAL_SEQUENCES, **options}
    return prepare(corpus, out, tokenizer=tokenizer, **options)


def stream(out: Path, split: str, domain: str) -> np.ndarray:
    """All tokens of a split of a domain, end to end."""
    dataset = LocalDataset(local=str(out / split / domain))
    return np.concatenate([dataset[index]["tokens"] for index in range(len(dataset))])


def whole_documents(out: Path, split: str, domain: str, tokenizer: Tokenizer) -> set[tuple[int, ...]]:
    """The documents that stand in the stream from their BOS to their EOS."""
    assert tokenizer.bos_id is not None
    tokens = stream(out, split, domain)
    starts = np.flatnonzero(tokens == tokenizer.bos_id)
    pieces = np.split(tokens, starts)
    return {tuple(piece[1:-1].tolist()) for piece in pieces if len(piece) and piece[-1] == tokenizer.eos_id}


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_manifest_accounts_for_every_document_and_token(corpus: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    manifest = run(corpus, tmp_path / "out", tokenizer)
    assert manifest == json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["seq_len"] == SEQ_LEN
    assert manifest["token_type"] == "uint16"
    assert (manifest["bos_id"], manifest["eos_id"]) == (1, 2)
    assert manifest["tokenizer"] == {"name": tokenizer.name, "vocab_size": 600, "sha256": tokenizer.sha256}
    for name, domain in manifest["domains"].items():
        lines = [line for file in (corpus / name).iterdir() for line in file.read_text(encoding="utf-8").splitlines()]
        texts = [next(iter(json.loads(line).values())) for line in lines]
        assert domain["documents"] == len(texts)
        assert domain["tokens"] == sum(map(len, tokenizer.encoder.encode(texts)))
        for key in ("documents", "tokens"):
            parts = (domain["train"], domain["eval"], domain["duplicates_of_eval"])
            assert domain[key] == sum(part[key] for part in parts)
        for split in ("train", "eval"):
            counts = domain[split]
            folder = tmp_path / "out" / split / name
            packed = counts["sequences"] * SEQ_LEN
            assert counts["tokens"] + 2 * counts["documents"] == packed + counts["dropped_tail_tokens"]
            assert len(stream(tmp_path / "out", split, name)) == packed
            hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.mds")}
            assert counts["shards"] == hashes
        assert domain["eval"]["sequences"] == EVAL_SEQUENCES
        assert domain["train"]["dropped_tail_tokens"] < SEQ_LEN


def test_sequences_hold_the_texts(corpus: Path, tmp_path: Path, tokenizer: Tokenizer, unicode_texts: list[str]) -> None:
    run(corpus, tmp_path / "out", tokenizer)
    documents = {split: whole_documents(tmp_path / "out", split, "other", tokenizer) for split in ("train", "eval")}
    encoded = {tuple(ids) for ids in tokenizer.encoder.encode(unicode_texts)}
    assert encoded <= documents["train"] | documents["eval"]


def test_no_text_is_in_both_splits(corpus: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    run(corpus, tmp_path / "out", tokenizer)
    domains = [path.name for path in corpus.iterdir()]
    held_out = set().union(*(whole_documents(tmp_path / "out", "eval", name, tokenizer) for name in domains))
    trained = set().union(*(whole_documents(tmp_path / "out", "train", name, tokenizer) for name in domains))
    assert held_out
    assert trained
    assert not held_out & trained


def test_streaming_reads_the_folders(corpus: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    manifest = run(corpus, tmp_path / "out", tokenizer)
    dataset = StreamingDataset(local=str(tmp_path / "out" / "train" / "code"), batch_size=1)
    assert dataset.num_samples == manifest["domains"]["code"]["train"]["sequences"]
    assert dataset[0]["tokens"].dtype == np.uint16
    assert dataset[0]["tokens"].shape == (SEQ_LEN,)


def test_any_number_of_workers_gives_the_same_bytes(corpus: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    for workers in (1, 3):
        run(corpus, tmp_path / str(workers), tokenizer, num_workers=workers)
    assert content(tmp_path / "1") == content(tmp_path / "3")


def test_bos_and_eos_as_asked(corpus: Path, tmp_path: Path, tokenizer: Tokenizer, huggingface_folder: Path) -> None:
    manifest = run(corpus, tmp_path / "none", tokenizer, bos=False, eos=False)
    assert (manifest["bos_id"], manifest["eos_id"]) == (None, None)
    assert not np.isin(stream(tmp_path / "none", "train", "code"), [1, 2]).any()
    without = Tokenizer("no-bos", tokenizer.encoder, 600, None, 2, {})
    assert run(corpus, tmp_path / "eos", without)["bos_id"] is None
    with pytest.raises(InputError, match=r"no-bos.*no BOS.*--no-bos"):
        run(corpus, tmp_path / "wrong", without, bos=True)


def test_bad_lines_are_counted_and_named(
    corpus: Path, tmp_path: Path, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    with (corpus / "code" / "b.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"text": "cut\n{"text": 7}\n')
    with caplog.at_level(logging.WARNING):
        manifest = run(corpus, tmp_path / "out", tokenizer)
    assert {name: domain["bad_lines"] for name, domain in manifest["domains"].items()} == {
        "code": 2,
        "copies": 0,
        "other": 0,
    }
    assert "b.jsonl:301" in caplog.text
    report = [json.loads(line) for line in (tmp_path / "out" / "bad_lines.jsonl").read_text().splitlines()]
    assert [(line["file"], line["line"]) for line in report] == [("code/b.jsonl", 301), ("code/b.jsonl", 302)]
    assert "int" in report[1]["reason"]


def test_too_many_bad_lines_stop_the_run_until_they_are_allowed(
    corpus: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    with (corpus / "other" / "a.jsonl").open("a", encoding="utf-8") as file:
        file.write("broken\n" * 10)
    with pytest.raises(InputError, match=r"'other' has 10 unreadable.*a\.jsonl:207.*--max-bad-share"):
        run(corpus, tmp_path / "out", tokenizer)
    assert not (tmp_path / "out" / "manifest.json").exists()
    manifest = run(corpus, tmp_path / "out", tokenizer, max_bad_share=0.05)
    assert manifest["domains"]["other"]["bad_lines"] == 10


def test_a_broken_file_stops_the_run(corpus: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    (corpus / "other" / "b.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(InputError, match=r"b\.jsonl\.gz"):
        run(corpus, tmp_path / "out", tokenizer, num_workers=2)


def test_a_domain_that_is_too_small_is_named(
    corpus: Path, tmp_path: Path, tokenizer: Tokenizer, texts: list[str], write_jsonl: WriteJsonl
) -> None:
    write_jsonl(corpus / "tiny" / "a.jsonl", texts[:1] * 100)
    with pytest.raises(InputError, match=r"'tiny' is too small: its 1 different.*--eval-sequences"):
        run(corpus, tmp_path / "out", tokenizer)
    write_jsonl(corpus / "tiny" / "a.jsonl", ["\n\n".join(texts[:50])])
    with pytest.raises(InputError, match=r"'tiny' is too small.*leaves 0"):
        run(corpus, tmp_path / "second", tokenizer)


def test_two_huge_documents_are_one_for_each_split(
    tmp_path: Path,
    tokenizer: Tokenizer,
    texts: list[str],
    write_jsonl: WriteJsonl,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_jsonl(tmp_path / "corpus" / "book" / "a.jsonl", ["\n".join(texts[:400]), "\n".join(texts[400:800])])
    book = run(tmp_path / "corpus", tmp_path / "out", tokenizer)["domains"]["book"]
    assert (book["train"]["documents"], book["eval"]["documents"]) == (1, 1)
    dropped = book["eval"]["dropped_tail_tokens"]
    assert dropped == book["eval"]["tokens"] + 2 - EVAL_SEQUENCES * SEQ_LEN
    assert f"'book': {100 * dropped / book['tokens']:.0f}% of its tokens" in caplog.text
    assert "held out whole, and 3 eval sequences hold 192 tokens. Split its documents" in caplog.text


def test_a_large_eval_split_and_a_large_rest_are_named(
    tmp_path: Path, tokenizer: Tokenizer, texts: list[str], write_jsonl: WriteJsonl, caplog: pytest.LogCaptureFixture
) -> None:
    write_jsonl(tmp_path / "corpus" / "code" / "a.jsonl", texts[:30])
    tokens = sum(map(len, tokenizer.encoder.encode(texts[:30])))
    half = tokens // 2
    run(tmp_path / "corpus", tmp_path / "half", tokenizer, seq_len=half // 8, eval_sequences=8)
    assert "'code': 8 eval sequences take 50% of its tokens from training" in caplog.text
    caplog.clear()
    run(tmp_path / "corpus", tmp_path / "long", tokenizer, seq_len=tokens // 3, eval_sequences=1)
    assert re.search(r"'code': \d+% of its tokens .* are in no sequence of its train split: .*--seq-len", caplog.text)


def test_a_complete_folder_is_left_as_it_is(corpus: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    out = tmp_path / "out"
    manifest = run(corpus, out, tokenizer)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert run(corpus, out, tokenizer, num_workers=2) == manifest
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times


def test_another_output_is_never_mixed_in(
    corpus: Path, tmp_path: Path, tokenizer: Tokenizer, texts: list[str], write_jsonl: WriteJsonl
) -> None:
    out = tmp_path / "out"
    run(corpus, out, tokenizer)
    with pytest.raises(InputError, match=r"another 'seq_len': 64, now 32"):
        run(corpus, out, tokenizer, seq_len=32)
    write_jsonl(corpus / "code" / "c.jsonl", texts[:10])
    with pytest.raises(InputError, match="another input: the file 'code/c.jsonl' is new"):
        run(corpus, out, tokenizer)
    (tmp_path / "foreign" / "train").mkdir(parents=True)
    with pytest.raises(InputError, match=r"no manifest\.json"):
        run(corpus, tmp_path / "foreign", tokenizer)


def test_two_runs_do_not_share_a_folder(corpus: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    settings = {"format": 2, "tokenizer": {"name": tokenizer.name}, "token_type": "uint16", "text_key": None}
    with work_folder(tmp_path / "out", settings), pytest.raises(InputError, match="Another run"):
        run(corpus, tmp_path / "out", tokenizer)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"seq_len": 1}, "--seq-len 1"), ({"eval_sequences": 0}, "--eval-sequences 0"), ({"num_workers": 0}, "--workers")],
)
def test_numbers_out_of_range_are_refused(
    corpus: Path, tmp_path: Path, tokenizer: Tokenizer, options: dict[str, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(corpus, tmp_path / "out", tokenizer, **options)


def test_the_command_says_what_is_wrong_and_exits_with_2(
    corpus: Path, tmp_path: Path, sentencepiece_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(corpus), str(tmp_path / "out"), "--tokenizer", str(sentencepiece_model), "--seq-len", "64"]
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--eval-sequences", "100000"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: Domain 'code' is too small")


def test_the_command_writes_a_table(
    corpus: Path, tmp_path: Path, huggingface_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--seq-len", "64", "--eval-sequences", "3", "--workers", "2", "--no-bos"]
    main([str(corpus), str(tmp_path / "out"), "--tokenizer", str(huggingface_folder), *arguments])
    table, progress = capsys.readouterr()
    for step in ("tokenizing", "packing"):
        assert re.search(rf"{step}: 100%.*[\d.,]+[kM]? tokens/s", progress), progress
    assert [line.split()[:2] for line in table.splitlines()[1:]] == [
        ["code", "650"],
        ["copies", "300"],
        ["other", "206"],
    ]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["bos_id"], manifest["eos_id"]) == (None, 2)


def test_counts_of_real_samples(shared: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(shared / "data" / "llama_tokenizer.model"))
    samples = shared / "data" / "sample_redpajama"
    manifest = run(samples, tmp_path / "out", tokenizer, seq_len=512, eval_sequences=8, num_workers=2)
    assert {name: (domain["documents"], domain["tokens"]) for name, domain in manifest["domains"].items()} == {
        "arxiv": (20, 299_233),
        "book": (2, 429_726),
        "c4-rp": (1998, 1_105_196),
        "cc": (20, 55_576),
        "github": (200, 438_439),
        "stackexchange": (2000, 1_074_817),
        "wiki": (20, 110_581),
    }
    assert all(domain["bad_lines"] == 0 for domain in manifest["domains"].values())
