"""Documents into sequences."""

from __future__ import annotations

import numpy as np
import pytest

from data_prep.pack import Packer, PackSettings


def settings(*, seq_len: int = 4, bos_id: int | None = 1, eos_id: int | None = 2) -> PackSettings:
    return PackSettings(seq_len=seq_len, token_type="uint16", bos_id=bos_id, eos_id=eos_id, eval_sequences=1)


def test_documents_are_laid_end_to_end_with_bos_and_eos() -> None:
    packer = Packer(settings())
    assert packer.add(np.array([10, 11, 12, 13, 14], "uint16")).tolist() == [[1, 10, 11, 12]]
    assert packer.add(np.array([20], "uint16")).tolist() == [[13, 14, 2, 1]]
    assert packer.add(np.array([], "uint16")).tolist() == [[20, 2, 1, 2]]
    assert packer.tail.tolist() == []


@pytest.mark.parametrize(("bos_id", "eos_id"), [(None, None), (1, None), (None, 2), (1, 2)])
def test_nothing_is_lost_or_reordered(bos_id: int | None, eos_id: int | None) -> None:
    generator = np.random.default_rng(0)
    documents = [generator.integers(3, 60_000, length).astype("uint16") for length in generator.integers(0, 40, 200)]
    before, after = ([] if token is None else [token] for token in (bos_id, eos_id))
    packer = Packer(settings(seq_len=16, bos_id=bos_id, eos_id=eos_id))
    packed = np.concatenate([packer.add(document) for document in documents])
    stream = [token for document in documents for token in (*before, *document.tolist(), *after)]
    assert packed.dtype == np.uint16
    assert packed.shape == (len(stream) // 16, 16)
    assert [*packed.ravel().tolist(), *packer.tail.tolist()] == stream
    assert len(packer.tail) < 16
