from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import choose_shape
from benchmarks.choose_shape import rank_correlation, spread_out
from llmshearing.errors import InputError


def test_shapes_are_taken_from_all_over_the_ranking() -> None:
    assert spread_out(list(range(12)), 3) == [0, 6, 11]
    assert spread_out([4, 5], 2) == [4, 5]
    with pytest.raises(InputError, match="There are 2 candidates of this size, not 3"):
        spread_out([4, 5], 3)


def test_rank_correlation_is_of_ranks() -> None:
    assert rank_correlation([1, 2, 30], [0.1, 7, 8]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [9, 8, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(0.8)


@pytest.mark.slow
def test_every_shape_is_trained_and_the_table_has_the_coefficient(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(choose_shape, "ROOT", tmp_path)
    monkeypatch.setattr(choose_shape, "FITTED", 2)
    choose_shape.main(["--shared", str(shared), "--share", "0.5", "--shapes", "2", "--steps", "12", "--seeds", "1"])
    said = capsys.readouterr().out
    assert len(re.findall(r"^shape [12], seed 1: \d\.\d{4}$", said, re.MULTILINE)) == 2
    assert len(re.findall(r"^\| [12] \| .* \| 1 \|$", said, re.MULTILINE)) == 2
    assert re.search(r"coefficient: [+-]1\.00$", said, re.MULTILINE)
