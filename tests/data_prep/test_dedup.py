"""Exact copies within the train split."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llmshearing.data_prep.corpus import find_corpus
from llmshearing.data_prep.readers import Document, read_documents
from llmshearing.data_prep.tokenize_file import text_hash
from llmshearing.errors import InputError
from tests.data_prep.same_bytes import content, run


def without_copies(corpus: Path, folder: Path, domains: dict[str, dict[str, dict[str, int]]]) -> Path:
    """The same corpus without what is a copy of an earlier document and not held out, put together line by line."""
    texts = {
        file: [item.text for item in read_documents(file.path) if isinstance(item, Document)]
        for files in find_corpus(corpus).values()
        for file in files
    }
    held, seen = set(), set()
    for domain, counts in domains.items():
        hashes = {text_hash(text) for file, found in texts.items() if file.domain == domain for text in found}
        held |= set(sorted(hashes)[: counts["eval"]["documents"]])
    for file, found in texts.items():
        kept = []
        for text in found:
            if text_hash(text) in held or text not in seen:
                kept.append(json.dumps({"text": text}) + "\n")
            seen.add(text)
        path = folder / file.domain / f"{file.name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(kept))
    return folder


def test_copies_are_left_out_of_train_but_for_the_first_of_all_domains(
    mixed_corpus: Path, small_pieces: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmshearing.data_prep.dedup.PARTITION_DOCUMENTS", 100)
    with pytest.raises(InputError, match=r"'copies' is too small.*leaves 0, without 15\d copies of other documents"):
        run(mixed_corpus, tmp_path / "out", dedup="exact")
    corpus = Path(shutil.copytree(mixed_corpus, tmp_path / "corpus"))
    with (corpus / "copies" / "a.jsonl").open("a") as file:
        file.writelines(json.dumps({"text": f"{number} and no other"}) + "\n" for number in range(30))
    plain = run(corpus, tmp_path / "plain")["domains"]
    manifest = run(corpus, tmp_path / "out", dedup="exact")
    run(corpus, tmp_path / "two", dedup="exact", num_workers=2)
    assert content(tmp_path / "two") == content(tmp_path / "out")
    assert manifest["dedup"] == "exact"
    expected = run(without_copies(corpus, tmp_path / "by_hand", plain), tmp_path / "expected")["domains"]
    for name, domain in manifest["domains"].items():
        assert domain["train"] == expected[name]["train"]  # with the hashes of all shards
        assert domain["eval"] == expected[name]["eval"] == plain[name]["eval"]
        assert domain["duplicates_of_train"]["documents"] > 0
        for key in ("documents", "tokens"):
            assert domain[key] == plain[name][key]
            parts = (domain["train"], domain["eval"], domain["duplicates_of_eval"], domain["duplicates_of_train"])
            assert domain[key] == sum(part[key] for part in parts)
    with pytest.raises(InputError, match="another 'dedup': exact, now None"):
        run(corpus, tmp_path / "out")
    with pytest.raises(InputError, match="another 'dedup': None, now exact"):
        run(corpus, tmp_path / "plain", dedup="exact")
