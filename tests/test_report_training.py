"""The report on how training went: every layout of a run's folder, speed, stages compared, values under the pointer."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmshearing.environment import environment, record
from llmshearing.errors import InputError
from llmshearing.report.collect import Series, Stage, collect
from llmshearing.report.records import ENVIRONMENTS, read_environments
from llmshearing.report.style import GRID, INK, MUTED, PAPER
from llmshearing.report.training import tokens_per_second
from tests.test_report import pictures, pruning_records, report, write_records

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """``runs/mine`` as the README has it: a pruning run, and two that train on."""
    run = tmp_path / "mine"
    write_records(run / "prune", pruning_records(20))
    for number, name in enumerate(("continue", "control")):
        records: list[dict[str, Any]] = []
        for batch in range(1, 41):
            records.append({"batch": batch, "tokens": batch * 1000, "time": 5000.0 + 1e4 * number + batch * 10})
            records[-1] |= {
                "loss/train/total": 3.0,
                "lr-DecoupledAdamW/group0": 1e-4 * batch,
                "data/passes/code": batch / 8,
            }
            if batch % 20 == 0:
                losses = {"code": 3 - batch / 40 + number, "wiki": 4 - batch / 40 + number}
                records[-1] |= {f"metrics/{domain}/LanguageCrossEntropy": loss for domain, loss in losses.items()}
        write_records(run / name, records)
    (run / "continue" / "recipe.yaml").write_text("run_name: <mine>\n")
    record(run / "continue", 8)
    return run


def stage(**series: tuple[list[int], list[float]]) -> Stage:
    made = {name: Series(np.array(batches), np.array(values, float)) for name, (batches, values) in series.items()}
    return Stage("stage", made)


def test_the_folder_of_all_runs_is_one_report(mine: Path) -> None:
    page = report(mine)
    assert re.findall(r"<h2 .*?>(.*?)</h2>", page) == ["Summary", "prune", "continue", "control"]
    compared = pictures(page)["Evaluation loss of the stages"]
    assert "continue ends at 2.500; control ends at 3.500" in compared
    assert "control 3.500" in compared
    assert "mean: 2.5 at batch 40" in page
    assert "Median 100 tokens/s." in page
    assert "At most 5 passes over a domain&#x27;s data." in page or "At most 5 passes" in page
    assert "Ends at 0.004." in page  # the learning rate


def test_a_run_that_broke_down_is_still_compared_and_passes_need_no_proportions(mine: Path) -> None:
    records = [{"batch": batch, "tokens": batch * 1000, "data/passes/new": batch / 4} for batch in (1, 2)]
    for made, loss in zip(records, (3.0, "nan"), strict=True):
        made |= {"metrics/code/LanguageCrossEntropy": loss}  # type: ignore[dict-item]
    write_records(mine / "control", records)
    page = report(mine)
    assert "control ends at 3.000" in pictures(page)["Evaluation loss of the stages"]
    assert "is NaN or infinite in 1 records, first at batch 2" in page
    assert ">new 0.5<" in page


def test_settings_and_machine_are_shown(mine: Path) -> None:
    page = report(mine)
    assert "<pre>run_name: &lt;mine&gt;\n</pre>" in page
    assert f"python {environment(8)['python']}" in page
    assert "processes 8" in page


def test_an_environment_is_kept_once_until_another_takes_over(tmp_path: Path) -> None:
    for world_size in (1, 1, 2, 1):
        record(tmp_path, world_size)
    found = read_environments(tmp_path / ENVIRONMENTS)
    assert [entry["processes"] for entry in found] == [1, 2, 1]
    assert {"python", "torch", "mosaicml", "transformers", "device"} <= found[0].keys()
    (tmp_path / ENVIRONMENTS).write_text("{}")
    with pytest.raises(InputError, match="not a list of environments"):
        record(tmp_path, 1)


def test_the_mean_is_over_evaluations_of_all_domains() -> None:
    found = stage(**{
        "metrics/a/LanguageCrossEntropy": ([10, 20, 30], [1.0, 2.0, 3.0]),
        "metrics/b/LanguageCrossEntropy": ([20, 30], [4.0, 5.0]),
    }).mean_loss()  # fmt: skip
    assert found is not None
    assert (found.batches.tolist(), found.values.tolist()) == ([20, 30], [3.0, 4.0])
    assert stage(tokens=([1], [1.0])).mean_loss() is None


def test_the_time_between_two_processes_is_none_of_training() -> None:
    batches = list(range(1, 101))
    clock = [batch * 2.0 + (36_000 if batch > 50 else 0) for batch in batches]
    found = tokens_per_second(stage(tokens=(batches, [batch * 100.0 for batch in batches]), time=(batches, clock)))
    assert found is not None
    assert set(np.round(found.values, 6)) == {50.0}
    assert tokens_per_second(stage(tokens=([1], [100.0]), time=([1], [2.0]))) is None
    assert tokens_per_second(stage(tokens=([1, 2], [100.0, 200.0]), time=([1, 2], [2.0, 2.0]))) is None


def test_points_say_their_values_where_they_are_drawn(mine: Path) -> None:
    svg = pictures(report(mine))["Learning rate"]
    width, height = map(float, re.search(r'viewBox="0 0 (\S+) (\S+)"', svg).groups())  # type: ignore[union-attr]
    points = re.findall(r'class="point" cx="(\S+)" cy="(\S+)" r="5"><title>Learning rate: (\S+) at batch (\d+)<', svg)
    assert len(points) == 40
    assert [(float(value), int(batch)) for _, _, value, batch in points] == [
        (pytest.approx(1e-4 * batch, rel=1e-3), batch) for batch in range(1, 41)
    ]
    places = np.array([[float(left), float(up)] for left, up, _, _ in points])
    assert (np.diff(places[:, 0]) > 0).all()
    assert (np.diff(places[:, 1]) < 0).all()  # up on the page
    assert (places > 0).all()
    assert (places < [width, height]).all()
    # The line itself goes through them.
    drawn = [tuple(map(float, pair)) for pair in re.findall(r"[ML] (\S+) (\S+) ", svg)]
    for left, up in places[[0, -1]]:
        assert min(abs(x - left) + abs(y - up) for x, y in drawn) < 0.2


def test_a_single_point_is_a_whole_dot(tmp_path: Path) -> None:
    write_records(tmp_path, [{"batch": 8, "metrics/code/LanguageCrossEntropy": 2.0}])
    svg = pictures(report(tmp_path))["code"]
    assert "<use" in svg
    assert "clip-path" not in "".join(re.findall(r"<g[^>]*>\s*<use[^>]*>", svg))


def test_pictures_take_the_pages_colours(mine: Path) -> None:
    page = report(mine)
    assert "prefers-color-scheme: dark" in page
    drawn = "".join(pictures(page).values())
    assert "var(--ink)" in drawn
    assert "var(--muted)" in drawn
    assert not [colour for colour in (INK, MUTED, GRID, PAPER) if colour in drawn]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it(mine: Path, tmp_path: Path, dark: bool) -> None:
    matplotlib_image = pytest.importorskip("matplotlib.image")
    report(mine)
    picture = tmp_path / "page.png"
    settings = ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         "--window-size=1300,4000", *settings, f"--screenshot={picture}", (mine / "report.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    pixels = matplotlib_image.imread(picture)[..., :3]
    corner, brightness = pixels[5, 5].mean(), pixels.mean(axis=-1)
    assert corner < 0.2 if dark else corner > 0.9
    assert (brightness > 0.75).mean() > 0.001  # something to read on dark, and the page itself on light
    assert (abs(brightness - corner) > 0.4).mean() > 0.002


def test_it_reads_what_runs_leave(mine: Path) -> None:
    found = {stage.name: stage for stage in collect(mine).stages}
    assert found["continue"].recipe == "run_name: <mine>\n"
    assert found["control"].recipe == ""
    assert json.loads((mine / "continue" / ENVIRONMENTS).read_text()) == found["continue"].environments
