"""The comparison of rules for the data mix."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.data_mix import RULES, main, table
from llmshearing.data.callback import DynamicBatchLoading


def test_the_table_has_the_worst_gap_to_the_source_and_the_mean() -> None:
    source, start = {"web": 2.0, "code": 1.0}, {"web": 5.0, "code": 3.0}
    runs = {"constant": [{"web": 2.5, "code": 2.0}, {"web": 3.5, "code": 1.0}], "ado": [{"web": 2.25, "code": 1.25}]}
    assert table(runs, start, source).splitlines() == [
        "| rule | worst gap | mean | code | web | seeds |",
        "|---|---|---|---|---|---|",
        "| the source | 0.000 | 1.500 | 1.000 | 2.000 | 1 |",
        "| before training | 3.000 | 4.000 | 3.000 | 5.000 | 1 |",
        "| constant | 1.250 (0.354) | 2.250 (0.000) | 1.500 | 3.000 | 2 |",
        "| ado | 0.250 | 1.750 | 1.250 | 2.250 | 1 |",
    ]


def test_every_rule_is_one_of_the_callback() -> None:
    for settings in RULES.values():
        if settings is not None:
            DynamicBatchLoading({"web": 1.0}, **settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rules", "adoo"], "there is no rule ['adoo']"),
        (["--shared", "nowhere"], "'nowhere' has no golden models. Take --source smollm2-58m"),
    ],
)
def test_what_cannot_be_run_is_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--out", str(tmp_path)])
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_runs_that_are_there_are_not_run_again(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--out", str(tmp_path), "--shared", str(shared), "--steps", "30", "--seeds", "1", "--jobs", "1"]
    arguments += ["--rules", "constant", "Algorithm 1"]
    main(arguments)
    first = capsys.readouterr().out
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    assert len(made) == 2
    main(arguments)
    assert capsys.readouterr().out == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()} == made
    rows = {row.split(" | ")[0]: row.split(" | ") for row in first.splitlines() if row.startswith("| ")}
    assert float(rows["| the source"][2]) < float(rows["| constant"][2]) < float(rows["| before training"][2])
    assert rows["| constant"][1:] != rows["| Algorithm 1"][1:]  # 30 batches are more than a round
