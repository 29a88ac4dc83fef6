"""The recipe that filters with datatrove, up to the training data made of its output."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow.parquet
import pytest

from llmshearing.data_prep.prepare import prepare
from tests.data_prep.conftest import WriteJsonl
from tests.data_prep.same_bytes import TOKENIZER

pytest.importorskip("datatrove", reason="no datatrove: pip install 'llmshearing[dev]'")


def test_poor_text_and_near_copies_are_left_out(tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    from llmshearing.data_prep.filter_with_datatrove import main

    generator = random.Random(0)
    words = (
        "river",
        "library",
        "engine",
        "garden",
        "harbour",
        "painted",
        "walked",
        "window",
        "of",
        "the",
        "and",
        "that",
    )
    good = [" ".join(generator.choices(words, k=90)) + "." for _ in range(6)]
    near = good[2].replace(".", " again.")
    write_jsonl(tmp_path / "in" / "web" / "a.jsonl", [*good, near, "short", "# " * 300])
    with (tmp_path / "in" / "web" / "a.jsonl").open("a") as file:
        file.write("broken\n")
    write_jsonl(tmp_path / "in" / "web" / "b.jsonl", [good[0]])
    write_jsonl(tmp_path / "in" / "more" / "a.jsonl", good[:3])
    main([str(tmp_path / "in"), str(tmp_path / "out"), "--tasks", "2"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["more", "web"]
    tables = [pyarrow.parquet.read_table(path) for path in sorted((tmp_path / "out" / "web").iterdir())]
    kept = [text for table in tables for text in table["text"].to_pylist()]
    assert len(kept) == len(good)
    assert len({near, good[2]} & set(kept)) == 1
    assert set(kept) <= {*good, near}
    counts = prepare(tmp_path / "out", tmp_path / "data", tokenizer=TOKENIZER, seq_len=32, eval_sequences=2)["domains"]
    assert {name: domain["documents"] for name, domain in counts.items()} == {"more": 3, "web": 6}
