"""What a report refuses, and what it names instead of drawing it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmshearing.errors import InputError
from llmshearing.report.__main__ import main
from llmshearing.report.collect import collect
from tests.test_report import DOWNSTREAM, SHAPE, SHEARING, SUMMARY, pruning_records, write_records


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no metrics"),
        ("", "holds no metrics"),
        ('{"batch": 1, "a": 2}\nhello\n', "Line 2 of .*metrics.jsonl' is not a record"),
        ('{"a": 2}\n', "Line 1 of .* is not a record"),
        ("[]\n", "Line 1 of .* is not a record"),
        ("[" * 100_000 + "\n", "Line 1 of .* is not a record"),
        ('{"batch": 1e999, "a": 2}\n', "Line 1 of .* is not a record"),
        ('{"batch": 1.5, "a": 2}\n', r"Line 1 of .* is not a record .*1\.5"),
        ('{"batch": -1, "a": 2}\n', "Line 1 of .* is not a record"),
        ('{"batch": 1, "a": ' + "9" * 400 + "}\n", "Line 1 of .* is not a record"),
        ('{"batch": 1, "a": "\udcff"}\n', "Line 1 of .* is not a record"),
    ],
)
def test_what_is_no_run_folder_is_refused(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "metrics.jsonl").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=message):
        collect(tmp_path)


def test_numbers_that_cannot_be_drawn_are_named(tmp_path: Path) -> None:
    wrong = {
        "time": "inf",
        "tokens": "nan",
        "loss/train/total": 1e308,
        "pruning/distance": -1e308,
        "pruning/hidden_size/undecided": "inf",
        "data/proportion/code": "nan",
    }
    write_records(tmp_path, [{**pruning_records(10)[-1], **wrong}])
    main([str(tmp_path)])
    page = (tmp_path / "report.html").read_text()
    for key in wrong:
        assert f"<b>{key}</b> is NaN or infinite in 1 records" in page


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of nested JSON with another value at ``path``."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("summary.json", content) for content in ([1], "x", None)),
        *(("summary.json", replaced(SUMMARY, (key,), wrong)) for key in ("eval_loss", "tokens") for wrong in (None, 5)),
        ("summary.json", replaced(SUMMARY, ("eval_loss", "source", "code"), "x")),
        ("summary.json", replaced(SUMMARY, ("eval_loss", "final"), {"code": 1.0})),
        ("summary.json", replaced(SUMMARY, ("wall_s", "prune"), [1])),
        ("summary.json", replaced(SUMMARY, ("quality", "final"), 1.0)),
        ("summary.json", replaced(SUMMARY, ("speed", "final", "latency_s"), "fast")),
        *(("summary.json", replaced(SUMMARY, ("samples", "One"), wrong)) for wrong in ("text", {}, {"source": 1})),
        ("summary.json", replaced(SUMMARY, ("parameters", "final"), float("nan"))),
        *(("downstream.json", content) for content in ([1], {}, "x", None)),
        *(("downstream.json", replaced(DOWNSTREAM, (key,), 5)) for key in ("tasks", "models")),
        ("downstream.json", {key: value for key, value in DOWNSTREAM.items() if key != "lm_eval"}),
        ("downstream.json", replaced(DOWNSTREAM, ("models", "runs/<b>final", "results", "PIQA", "metrics"), {})),
        ("downstream.json", replaced(DOWNSTREAM, ("models", "runs/<b>final", "average"), "high")),
        *(("shearing.json", content) for content in ([1], {}, "x", None, {"source": 5})),
        *(("shearing.json", replaced(SHEARING, ("source", key), wrong)) for key in SHAPE for wrong in (0, "x", 10**12)),
        ("shearing.json", replaced(SHEARING, ("source", "num_key_value_heads"), 3)),
        ("shearing.json", replaced(SHEARING, ("kept", "hidden_size"), [99])),
        ("shearing.json", replaced(SHEARING, ("kept", "layers"), 2)),
        ("shearing.json", replaced(SHEARING, ("kept", "per_layer", 0), "x")),
        ("shearing.json", replaced(SHEARING, ("kept", "per_layer", 0, "layer"), 3)),
        ("shearing.json", replaced(SHEARING, ("kept", "per_layer", 0, "num_attention_heads"), {})),
    ],
)
def test_damaged_records_are_named(name: str, content: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_records(tmp_path, [{"batch": 1, "loss/train/total": 3.0}])
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path)])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: '{tmp_path / name}' is damaged: ")
    assert len(error.splitlines()) == 1


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_records(tmp_path, [{"batch": 1, "loss/train/total": 3.0}])
    (tmp_path / "report.html").mkdir()
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path)])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: '{tmp_path / 'report.html'}' is no file")
