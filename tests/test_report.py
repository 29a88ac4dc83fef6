"""The report: what it reads, that it shows exactly what is there, and that the page stands alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from llmshearing.report.__main__ import main
from llmshearing.report.collect import Series, collect, read_metrics
from llmshearing.report.maps import binned
from llmshearing.report.style import ACCENT, spread, thin

SHAPE = {"hidden_size": 12, "intermediate_size": 10, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2}  # fmt: skip
TARGET = {"hidden_size": 6, "intermediate_size": 5, "num_hidden_layers": 2, "num_attention_heads": 2,
          "num_key_value_heads": 1}  # fmt: skip
KEPT_LAYER = {"intermediate_size": [0, 2, 4, 6, 8], "num_key_value_heads": [1], "num_attention_heads": [2, 3]}
SHEARING = {
    "format": 1,
    "source": SHAPE,
    "target": TARGET,
    "kept": {
        "layers": [0, 2],
        "hidden_size": [0, 1, 2, 3, 4, 5],
        "per_layer": [{"layer": 0, **KEPT_LAYER}, {"layer": 2, **KEPT_LAYER}],
    },
}
SUMMARY = {
    "eval_loss": {
        "source": {"code": 1.5, "wiki": 2.5, "mean": 2.0},
        "final": {"code": 1.75, "wiki": 2.75, "mean": 2.25},
        "control": {"code": 2.0, "wiki": 3.0, "mean": 2.5},
    },
    "parameters": {"source": 7_900_000, "final": 2_360_000},
    "tokens": {"prune": 1_638_400},
    "wall_s": {"prune": 3725.0},
    "proportions": {"prune": {"code": 0.125, "wiki": 0.875}},
    "seed": 17,
    "control": "random <units>",
    "quality": {"source": {"agreement": 1.0, "choices": 0.75}, "final": {"agreement": 0.5, "choices": 0.625}},
    "speed": {"final": {"prefill_tokens_per_s": 1234.5, "decode_tokens_per_s": 23.45, "latency_s": 1.234}},
    "samples": {"One": {"source": "One is <b>1</b>", "final": "One is 2"}, "Two": {"source": "Two", "final": "Two!"}},
}

DOWNSTREAM: dict[str, Any] = {
    "suite": "mine",
    "lm_eval": "0.4.9",
    "dtype": "float32",
    "limit": None,
    "tasks": {
        "PIQA": {"task": "piqa", "shots": 0, "metric": "acc", "averaged": True},
        "cloze": {"task": "cloze", "shots": 2, "metric": "perplexity", "averaged": False},
    },
    "models": {
        "runs/<b>final": {
            "num_parameters": 97_349_184,
            "tokens": 45_056,
            "results": {"PIQA": {"metrics": {"acc": 0.512}}, "cloze": {"metrics": {"perplexity": 21.75}}},
            "average": 0.512,
        }
    },
}


def pruning_records(num_batches: int, *, start: float = 1000.0) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for batch in range(1, num_batches + 1):
        record = {"batch": batch, "tokens": batch * 512, "time": start + batch, "loss/train/total": 4 - batch / 50}
        for dimension, size in SHAPE.items():
            values = {"expected": size / 2 + 0.04, "target": size / 2, "undecided": 3, "lambda": 0.1, "phi": 0.2}
            record |= {f"pruning/{dimension}/{key}": value for key, value in values.items()}
        record |= {"pruning/distance": 0.017, "pruning/lagrangian": 0.3}
        if batch % 10 == 0:
            record |= {"data/effective_domains": 1.8}
            for domain, share in {"code": 0.25, "wiki": 0.75}.items():
                record |= {
                    f"metrics/{domain}/LanguageCrossEntropy": 2 + share,
                    f"data/loss/{domain}": 2 + share,
                    f"data/reference_loss/{domain}": 1.9,
                    f"data/proportion/{domain}": share,
                }
        records.append(record)
    return records


def write_records(folder: Path, records: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def report(folder: Path) -> str:
    main([str(folder)])
    return (folder / "report.html").read_text()


def pictures(page: str) -> dict[str, str]:
    """Each picture's SVG by its title."""
    return dict(re.findall(r"<figure><figcaption><strong>(.*?)</strong>.*?(<svg.*?</svg>)", page, flags=re.DOTALL))


def write_whole_run(run: Path) -> Path:
    """Two stages, of which the alphabetically first ran last, a shearing that two folders hold, and a summary."""
    write_records(run / "stages" / "prune", pruning_records(100))
    write_records(
        run / "stages" / "after", [{"batch": batch, "time": 5000.0, "loss/train/total": 3.0} for batch in (1, 2, 3)]
    )
    for folder in ("sheared", "final"):
        (run / folder).mkdir()
        (run / folder / "shearing.json").write_text(json.dumps(SHEARING))
    (run / "summary.json").write_text(json.dumps(SUMMARY))
    return run


@pytest.fixture
def whole_run(tmp_path: Path) -> Path:
    """The folder of :func:`write_whole_run`, for one test."""
    return write_whole_run(tmp_path / "demo")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its page, drawn once."""
    return report(write_whole_run(tmp_path_factory.mktemp("report") / "demo"))


def test_a_whole_run_shows_everything_in_the_order_it_happened(page: str) -> None:
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", page)
    assert headings == ["Summary", "What they write", "prune", "after", "What was kept (final, sheared)"]
    assert list(pictures(page)) == [
        "Training loss", "Mean of the domains", "Domain proportions", "code", "wiki", "Layers", "Hidden size",
        "Intermediate size", "Attention heads", "Key-value heads", "Distance from the final shape", "Speed",
        "Layers and heads", "Intermediate dimensions", "Hidden dimensions",
    ]  # fmt: skip


def test_only_sections_with_data_are_shown(tmp_path: Path) -> None:
    write_records(tmp_path, [{"batch": batch, "loss/train/total": 3.0} for batch in (1, 2, 3)])
    page = report(tmp_path)
    assert list(pictures(page)) == ["Training loss"]
    assert re.findall(r"<h[23][^>]*>(.*?)</h[23]>", page) == [tmp_path.name, "Losses"]
    for absent in ("reference", "held-out", "tokens", "record", "Seed"):
        assert absent not in page.split("</style>")[1]


def test_the_page_refers_to_nothing_outside_itself(page: str) -> None:
    references = re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', page) + re.findall(r"url\(([^)]*)\)", page)
    assert references
    assert all(reference.startswith(("#", "data:image/png;base64,")) for reference in references)
    assert "@import" not in page
    assert "<script" not in page


def test_pictures_are_well_formed_and_scale_with_the_page(page: str) -> None:
    for title, svg in pictures(page).items():
        root = ElementTree.fromstring(svg)
        assert "viewBox" in root.attrib, title
        assert "width" not in root.attrib, title
        assert root.attrib["aria-label"], title


def test_notes_give_the_final_values(page: str) -> None:
    assert "100 batches · 51.2 k tokens · 1 min 39 s from the first to the last record" in page
    assert "Ends at 2.010. The dark line is a running mean over 2 batches." in page
    assert "Ends at 6.0, target 6, 3 masks undecided." in page
    assert "Ends at 2.250, reference 1.900." in page
    assert "as varied as 1.8 equal domains (of 2)" in page
    assert "The worst group of units ends 1.7% of its source size from its final size." in page
    assert {"code 25.0%", "wiki 75.0%"} <= set(re.findall(r">([^<>]*%)</text>", pictures(page)["Domain proportions"]))


def test_a_domain_has_one_colour_throughout(page: str) -> None:
    for domain in ("code", "wiki"):
        (colour,) = set(re.findall(rf'background:(#\w+)"></span>{domain}<', page))
        assert colour in pictures(page)[domain]
        assert colour in pictures(page)["Domain proportions"]


def test_the_heads_map_marks_exactly_the_kept_heads(page: str) -> None:
    svg = pictures(page)["Layers and heads"]
    assert svg.count(f"fill: {ACCENT}") == 2 * 2  # two heads in each of two layers
    assert svg.count("fill: var(--line)") == 3 * 4 - 4


def test_dimensions_that_were_not_pruned_have_no_map(whole_run: Path) -> None:
    for folder in ("sheared", "final"):
        whole = {"intermediate_size": [0, 1, 2, 3, 4], "num_key_value_heads": [0], "num_attention_heads": [0, 1]}
        kept = {
            "layers": [0, 1],
            "hidden_size": [0, 1, 2, 3, 4, 5],
            "per_layer": [{"layer": 0, **whole}, {"layer": 1, **whole}],
        }
        narrowed = {**SHEARING, "source": {**TARGET, "hidden_size": 12}, "kept": kept}
        (whole_run / folder / "shearing.json").write_text(json.dumps(narrowed))
    titles = pictures(report(whole_run)).keys()
    assert "Hidden dimensions" in titles
    assert not {"Layers and heads", "Intermediate dimensions"} & titles


def test_wide_maps_show_the_share_of_kept_units_per_column() -> None:
    stay = np.zeros((2, 4096))
    stay[0, ::2] = 1
    stay[1, :1024] = 1
    columns = binned(stay)
    assert columns.shape == (2, 1024)
    assert (columns[0] == 0.5).all()
    assert columns[1].sum() == 256
    assert (binned(stay[:, :700]) == stay[:, :700]).all()


def test_the_summary_states_loss_cost_and_mix(page: str) -> None:
    assert "Seed 17. The final model's mean loss is 0.250 nats per token below that of the control" in page
    cells = {name: re.findall("<td>(.*?)</td>", row) for name, row in re.findall(r"<tr[^>]*><th>(?:<span[^>]*></span>)?"
             r"([^<]*)</th>(.*?)</tr>", page)}  # fmt: skip
    assert "below that of the control: random &lt;units&gt;." in page
    assert cells["agreement with the source on the next token"] == ["100.0%", "50.0%"]
    assert cells["true continuation found among four"] == ["75.0%", "62.5%"]
    assert cells["new tokens per second"] == ["23.4"]
    assert cells["mean"] == ["2.000", "2.250", "2.500"]
    assert cells["parameters"] == ["7.9 M", "2.36 M", ""]
    assert cells["prune"] == ["1.64 M", "1 h 2 min"]
    assert cells["code"] == ["12.5%"]  # the last table with that row: the proportions


def test_what_models_write_stands_side_by_side(page: str) -> None:
    rows = re.findall(r"<tr><th>(\w+)</th><td>(.*?)</td><td>(.*?)</td></tr>", page.split("What they")[-1])
    assert rows == [("One", " is &lt;b&gt;1&lt;/b&gt;", " is 2"), ("Two", "", "!")]


def test_values_that_are_not_finite_are_named(tmp_path: Path) -> None:
    values = [3.0, "nan", 2.5, "inf", 2.0]
    write_records(tmp_path, [{"batch": batch, "loss/train/total": value} for batch, value in enumerate(values, 1)])
    assert "<b>loss/train/total</b> is NaN or infinite in 2 records, first at batch 2" in report(tmp_path)


def test_lines_of_one_batch_are_merged_and_an_unfinished_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"batch": 2, "a": 1}\n{"batch": 1, "a": 5}\n{"batch": 2, "a": 3, "b": "nan"}\n{"batch": 3, "a"')
    series = read_metrics(path)
    assert series["a"].batches.tolist() == [1, 2]
    assert series["a"].values.tolist() == [5, 3]
    assert np.isnan(series["b"].values).tolist() == [True]


def test_a_folder_may_hold_metrics_itself_and_in_stages(whole_run: Path) -> None:
    write_records(whole_run, [{"batch": 1, "time": 1.0, "loss/train/total": 3.0}])
    assert [stage.name for stage in collect(whole_run).stages] == ["demo", "prune", "after"]


@pytest.mark.parametrize(
    "key", ["metrics/{}/LanguageCrossEntropy", "metrics/eval/{}/LanguageCrossEntropy", "data/loss/{}"]
)
def test_domain_losses_are_found_under_each_name_they_are_logged_by(key: str, tmp_path: Path) -> None:
    metrics = {key.format("wiki"): 2.5, "metrics/train/LanguageCrossEntropy": 3.0}
    write_records(tmp_path, [{"batch": 1, **metrics}])
    (stage,) = collect(tmp_path).stages
    assert {domain: series.last for domain, series in stage.losses().items()} == {"wiki": 2.5}


def test_names_are_escaped(tmp_path: Path) -> None:
    write_records(tmp_path, [{"batch": 1, "data/proportion/<b>$x$": 1.0, "data/loss/<b>$x$": 1.0}])
    page = report(tmp_path)
    assert "&lt;b&gt;$x$ 100.0%" in page
    assert "<strong>&lt;b&gt;$x$</strong>" in page


def test_the_same_run_gives_the_same_page(whole_run: Path, page: str) -> None:
    assert report(whole_run) == page


def test_a_domain_may_be_called_train(tmp_path: Path) -> None:
    metrics = {f"metrics/{domain}/LanguageCrossEntropy": loss for domain, loss in (("train", 3.0), ("web", 2.0))}
    shares = {"data/proportion/train": 0.5, "data/proportion/web": 0.5}
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"batch": 1, **metrics, **shares}) + "\n")
    (stage,) = collect(tmp_path).stages
    assert sorted(stage.losses()) == ["train", "web"]
    mean = stage.mean_loss()
    assert mean is not None
    assert mean.last == 2.5


def test_long_curves_are_drawn_as_means() -> None:
    curve = thin(Series(np.arange(1, 1001), np.arange(1000.0)), limit=300)
    assert len(curve.values) == 250
    assert curve.values[0] == np.mean([0, 1, 2, 3])
    assert curve.batches[0] == np.mean([1, 2, 3, 4])
    uneven = thin(Series(np.arange(1, 8), np.arange(7.0)), limit=3)
    assert uneven.values.tolist() == [1, 4, 6]


def test_labels_are_moved_apart_inside_the_picture() -> None:
    assert spread([0.2, 0.6], gap=0.1, high=1) == [0.2, 0.6]
    assert spread([0.5, 0.5], gap=0.1, high=1) == pytest.approx([0.5, 0.6])
    assert spread([0.1, 0.98, 0.99], gap=0.1, high=0.95) == pytest.approx([0.1, 0.85, 0.95])


def test_the_command_needs_no_torch_and_reports_bad_input_with_exit_code_2(whole_run: Path, tmp_path: Path) -> None:
    code = (
        "import runpy, sys\n"
        "runpy.run_module('llmshearing.report', run_name='__main__')\n"
        "assert not {'torch', 'composer', 'streaming'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(whole_run)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(whole_run / "report.html")
    failed = subprocess.run(
        [sys.executable, "-m", "llmshearing.report", str(tmp_path / "nowhere")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: ")
    assert len(failed.stderr.splitlines()) == 1
    assert not (tmp_path / "nowhere").exists()


def test_downstream_tasks_are_a_table_and_their_curves_pictures(tmp_path: Path) -> None:
    values = {"downstream/PIQA/acc": 0.5, "downstream/average": 0.25}
    write_records(tmp_path / "continue", [{"batch": batch, "time": batch, **values} for batch in (2, 4)])
    (tmp_path / "downstream.json").write_text(json.dumps(DOWNSTREAM))
    page = report(tmp_path)
    assert "<b>final" not in page
    row = re.search(r"<tr><th>runs/&lt;b&gt;final</th>(.*?)</tr>", page)
    assert row is not None
    assert re.findall("<td>(.*?)</td>", row[1]) == ["97.3M", "45.1k", "51.2", "21.75", "51.2"]
    assert "<th>cloze (2, perplexity)</th>" in page
    published = re.search(r"<tr><th>Sheared-LLaMA-2.7B \*</th>(.*?)</tr>", page)
    assert published is not None
    assert re.findall("<td>(.*?)</td>", published[1]) == ["2.7B", "50B", "75.8", "", "75.8"]
    assert {"PIQA: acc", "Average of the tasks"} <= pictures(page).keys()
