"""Peak memory of a process of its own, against what is known to be allocated there."""

from __future__ import annotations

import numpy as np

from llmshearing.peak_memory import peak_in_process

MB = 1_000_000


def load(size: int) -> np.ndarray:
    np.ones(3 * size, dtype=np.uint8)  # gone again before the peak counts
    return np.ones(size, dtype=np.uint8)


def nothing(loaded: np.ndarray) -> None:
    pass


def twice_as_much(loaded: np.ndarray) -> None:
    np.ones(2 * len(loaded), dtype=np.uint8)


def test_what_is_loaded_and_what_the_run_needs_beside_it_count_and_nothing_else() -> None:
    assert 100 * MB <= peak_in_process(load, nothing, 100 * MB) < 110 * MB
    assert 299 * MB <= peak_in_process(load, twice_as_much, 100 * MB) < 310 * MB
