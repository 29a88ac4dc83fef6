from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from streaming import MDSWriter

from llmshearing.data.loaders import DynamicDataLoader
from llmshearing.data.tokens import TokenDecoder, check_columns
from llmshearing.errors import InputError
from tests.data.helpers import open_dataset

IDS = np.array([1, 529, 31999, 0, 7, 2, 450, 9])


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "int32", "int64"])
def test_typed_columns(dtype: str) -> None:
    sample = TokenDecoder(seq_len=8, vocab_size=32000)({"tokens": IDS.astype(dtype)}, "here")
    assert sample["input_ids"].tolist() == sample["labels"].tolist() == IDS.tolist()
    assert sample["input_ids"].dtype == sample["labels"].dtype == torch.int64
    sample["labels"][0] = -100
    assert sample["input_ids"][0] == 1


@pytest.mark.parametrize("vocab_size", [None, 32000])
@pytest.mark.parametrize("dtype", ["uint16", "int32", "int64"])
def test_plain_bytes_are_recognised(dtype: str, vocab_size: int | None) -> None:
    decode = TokenDecoder(vocab_size=vocab_size)
    assert decode({"tokens": IDS.astype(dtype).tobytes()}, "here")["input_ids"].tolist() == IDS.tolist()
    assert decode.dtype == dtype
    assert decode.seq_len == 8


@pytest.mark.parametrize("dtype", ["uint16", "int32", "int64"])
def test_plain_bytes_of_nothing_but_padding_are_recognised_by_their_length(dtype: str) -> None:
    decode = TokenDecoder(seq_len=8, vocab_size=32000)
    assert decode({"tokens": np.zeros(8, dtype).tobytes()}, "here")["input_ids"].tolist() == [0] * 8
    assert decode({"tokens": IDS.astype(dtype).tobytes()}, "there")["input_ids"].tolist() == IDS.tolist()


def test_plain_bytes_as_told() -> None:
    decode = TokenDecoder(dtype="uint16")
    zeros_in_between = np.array([5, 0, 0, 0], np.uint16).tobytes()
    assert decode({"tokens": zeros_in_between}, "here")["input_ids"].tolist() == [5, 0, 0, 0]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.array([1, 2, 32000], np.uint16), "here holds token ids from 1 to 32000, but the vocabulary has 32000"),
        (np.array([1, -2, 3], np.int32), "from -2 to 3"),
        (np.array([1, 2], np.uint16), "not 3 tokens"),
        (np.array([[1, 2, 3]], np.uint16), "not 3 tokens"),
        (b"\xff\xff\xff\xff\xff\xff", "not token ids below 32000"),
    ],
)
def test_refuses(tokens: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TokenDecoder(seq_len=3, vocab_size=32000)({"tokens": tokens}, "here")


def shard(**columns: str) -> SimpleNamespace:
    return SimpleNamespace(column_names=list(columns), column_encodings=list(columns.values()))


def test_columns_tell_the_sequence_length() -> None:
    assert check_columns([shard(tokens="ndarray:uint16:64")], "web", seq_len=None, vocab_size=32000) == 64
    assert check_columns([shard(tokens="bytes", set="str")], "web", seq_len=None, vocab_size=None) is None
    assert check_columns([shard(tokens="ndarray:int32")], "web", seq_len=128, vocab_size=None) == 128


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_uint16_holds_a_vocabulary_of_65536_and_no_more(dtype: str) -> None:
    typed = [shard(tokens=f"ndarray:{dtype}:64")]
    assert check_columns(typed, "web", seq_len=64, vocab_size=65_536) == 64
    if dtype == "uint32":
        assert check_columns(typed, "web", seq_len=64, vocab_size=65_537) == 64
    else:
        with pytest.raises(InputError, match="uint16, which cannot hold every id of a vocabulary of 65537"):
            check_columns(typed, "web", seq_len=64, vocab_size=65_537)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": "str"}, r"Domain 'web' has columns \['text'\], not 'tokens'"),
        ({"tokens": "ndarray:uint32:32"}, "sequences of 32 tokens, where 64 are expected"),
        ({"tokens": "ndarray:float32:64"}, "not as integers or bytes"),
        ({"tokens": "str"}, "not as integers or bytes"),
        ({"tokens": "ndarray:uint16:64"}, "uint16, which cannot hold every id of a vocabulary of 100000"),
    ],
)
def test_columns_that_do_not_fit(columns: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_columns([shard(**columns)], "web", seq_len=64, vocab_size=100_000)


@pytest.mark.parametrize(
    ("columns", "encode"),
    [
        ({"tokens": "bytes"}, lambda ids: {"tokens": ids.astype(np.int64).tobytes()}),  # LLM Foundry, older
        ({"tokens": "ndarray:int32"}, lambda ids: {"tokens": ids.astype(np.int32)}),  # LLM Foundry
        ({"tokens": "bytes", "set": "str"}, lambda ids: {"tokens": ids.astype(np.uint16).tobytes(), "set": "web"}),
        ({"tokens": "ndarray:uint16:8"}, lambda ids: {"tokens": ids.astype(np.uint16)}),
        ({"tokens": "ndarray:uint32:8"}, lambda ids: {"tokens": ids.astype(np.uint32)}),
    ],
    ids=["foundry-bytes", "foundry-ndarray", "original", "uint16", "uint32"],
)
def test_datasets_that_others_prepared(tmp_path: Path, columns: dict[str, str], encode: object) -> None:
    with MDSWriter(out=str(tmp_path / "web"), columns=columns) as writer:
        for first in range(48):
            writer.write(encode(np.array([first, *IDS[1:]])))  # type: ignore[operator]
    dataset = open_dataset(tmp_path, proportions={"web": 1.0}, vocab_size=32000)
    assert dataset[3]["input_ids"].tolist() == [3, *IDS[1:].tolist()]
    assert dataset[3]["domain"].tolist() == 0
    assert dataset.seq_len == 8
    dataset.rounds.hold()
    batches = DynamicDataLoader(dataset, batch_size=dataset.batch_size, num_workers=2)
    rows = [row.tolist() for batch, _ in zip(batches, range(12), strict=False) for row in batch["input_ids"]]
    assert sorted(rows) == [[first, *IDS[1:].tolist()] for first in range(48)]
