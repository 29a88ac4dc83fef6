"""The comparison with other pruning tools: what completes their shapes, its table, and real cuts where they are."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.peers.__main__ import main
from benchmarks.peers.cuts import CUTS, PYTHON, complete, cut, why_not
from benchmarks.peers.multi_head import multi_head_source
from benchmarks.peers.own import minitron_scores
from benchmarks.peers.report import costs, rest, table
from benchmarks.quality.sources import Source, stories, tiny
from llmshearing.architecture.shapes import ModelShape
from tests.conftest import REPOSITORY
from tests.models import make_model

needs_peers = pytest.mark.skipif(not PYTHON.exists(), reason="`make bench-peers` installs the other tools first")
TARGET = {"num_hidden_layers": 2, "hidden_size": 12, "intermediate_size": 20, "num_attention_heads": 2}


def test_a_shape_is_completed_evenly_and_at_random(tmp_path: Path) -> None:
    source = small(tmp_path / "source")
    made = complete(source, TARGET, 1, tmp_path / "made")
    assert made["model"] == str(tmp_path / "made")
    assert made["completed"] == {
        "num_hidden_layers": [4, 2],
        "hidden_size": [32, 12],
        "intermediate_size": [40, 20],
        "num_key_value_heads": [4, 2],
        "num_attention_heads": [4, 2],
    }
    kept = json.loads((tmp_path / "made" / "shearing.json").read_text())["kept"]
    assert kept["layers"] == [0, 3]
    weights, old = load_file(tmp_path / "made" / "model.safetensors"), load_file(source / "model.safetensors")
    down = old["model.layers.3.mlp.down_proj.weight"][kept["hidden_size"]]
    assert torch.equal(
        weights["model.layers.1.mlp.down_proj.weight"], down[:, kept["per_layer"][1]["intermediate_size"]]
    )
    again, other = (complete(source, TARGET, seed, tmp_path / f"seed-{seed}-again")["model"] for seed in (1, 2))
    chosen = [json.loads((Path(folder) / "shearing.json").read_text())["kept"] for folder in (again, other)]
    assert chosen[0] == kept
    assert chosen[1]["hidden_size"] != kept["hidden_size"]
    assert complete(again, TARGET, 3, tmp_path / "nothing") == {"model": again, "completed": {}}


def test_a_multi_head_copy_computes_the_same(tmp_path: Path) -> None:
    source = small(tmp_path / "source", num_key_value_heads=2)
    setting = Source(
        "grouped", "a grouped one", str(source), tmp_path, {**TARGET, "num_key_value_heads": 1}, 1, 1, 1, 1, 1
    )
    copy = multi_head_source(setting, tmp_path / "copy")
    assert copy.target == TARGET
    assert AutoConfig.from_pretrained(copy.model).num_key_value_heads == 4
    ids = torch.arange(12).view(2, 6)
    before, after = (AutoModelForCausalLM.from_pretrained(model)(ids).logits for model in (source, copy.model))
    torch.testing.assert_close(after, before)
    reason = why_not("torch-pruning", setting)
    assert reason is not None
    assert "4 heads, 2 KV heads" in reason
    assert why_not("torch-pruning", copy) is None
    assert why_not("fmchisel", setting) is None


def test_activation_scores_are_means_over_tokens_and_norms_over_sequences(tmp_path: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(small(tmp_path / "source", num_key_value_heads=2)).eval()
    ids = torch.arange(24).view(4, 6)
    read: dict[str, torch.Tensor] = {}
    layer = model.model.layers[1]
    layer.mlp.down_proj.register_forward_pre_hook(lambda _, inputs: read.update(neurons=inputs[0]))
    layer.self_attn.o_proj.register_forward_pre_hook(lambda _, inputs: read.update(heads=inputs[0]))
    scores = minitron_scores(model, [ids[:2], ids[2:]]).units
    with torch.no_grad():
        model(ids)
    neurons = read["neurons"].abs().mean(1).norm(dim=0)
    torch.testing.assert_close(scores["intermediate_size"][1], neurons)
    heads = read["heads"].view(4, 6, 4, 8).norm(dim=-1).mean(1).norm(dim=0)
    torch.testing.assert_close(scores["num_attention_heads"][1].flatten(), heads)
    torch.testing.assert_close(scores["num_key_value_heads"][1], heads.view(2, 2).sum(-1))
    assert scores["num_hidden_layers"].shape == (4,)


def test_the_table_has_losses_by_steps_and_what_was_cut_for_a_tool() -> None:
    results = [result("random", seed, 6.0 + seed / 10) for seed in (1, 2)] + [result("fitted", 1, 4.5)]
    results[2] |= {"completed": {}, "looked_at": 7, "cut": {"seconds": 11.44, "peak_mb": 992.6, "before_mb": 921.2}}
    assert table(results, "a small one").splitlines()[2:] == [
        "| way | it cuts | cut for it | steps looked at | 0 | 25 | 300 | seeds |",
        "|---|---|---|---|---|---|---|---|",
        "| random units | nothing | layers, heads | 0 | 6.150 (0.071) | 5.150 (0.071) | 4.150 (0.071) | 2 |",
        "| ours: rotated; scored; fitted | all |  | 7 | 4.500 | 3.500 | 2.500 | 1 |",
    ]
    assert costs(results).splitlines()[2:] == ["| ours: rotated; scored; fitted | 11.4 | 993 | 921 |"]
    assert rest({"hidden_size": [4, 2], "num_attention_heads": [4, 2]}) == "hidden, heads"


def test_a_run_that_ends_at_a_mark_has_one_column_for_it() -> None:
    short = {**result("random", 1, 6.0), "steps": 25, "losses": {"0": 6.0, "25": 5.0}}
    assert table([short], "a small one").splitlines()[2:] == [
        "| way | it cuts | cut for it | steps looked at | 0 | 25 | seeds |",
        "|---|---|---|---|---|---|---|",
        "| random units | nothing | layers, heads | 0 | 6.000 | 5.000 | 1 |",
    ]


def test_the_published_table_is_that_of_the_published_runs() -> None:
    published = json.loads((REPOSITORY / "docs" / "peers.json").read_text())["results"]
    text = (REPOSITORY / "docs" / "results.md").read_text()
    grouped = set(CUTS) - {"torch-pruning"}
    for source, title, ways in (
        ("tiny", "far from converged", set(CUTS)),
        ("demo", "the demo's, multi-head", set(CUTS)),
        ("smollm2-97m", "SmolLM2-135M to 97M", grouped),
        ("smollm2-58m", "SmolLM2-135M to 58M", grouped),
    ):
        runs = [run for run in published if run["source"] == source]
        assert {run["way"] for run in runs} == ways
        assert table(runs, title) in text
        assert costs(runs) in text


def test_runs_that_are_there_are_not_run_again(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    for seed in (1, 2):
        run = result("random", seed, 6.0)
        (tmp_path / "runs" / f"tiny-300-random-{seed}.json").write_text(json.dumps(run))
    main(["--out", str(tmp_path), "--shared", str(shared), "--ways", "random", "--seeds", "1", "2"])
    assert "| random units | nothing | layers, heads | 0 | 6.000 (0.000) |" in capsys.readouterr().out
    assert json.loads((tmp_path / "results.json").read_text())["left_out"] == []


def test_a_source_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--out", str(tmp_path), "--shared", str(tmp_path / "nowhere"), "--sources", "tiny"])
    assert "has no golden models" in capsys.readouterr().err


@needs_peers
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reached"),
    [
        ("torch-pruning", {"hidden_size": 64, "intermediate_size": 172, "num_attention_heads": 2}),
        ("optipfair", {"num_hidden_layers": 3, "intermediate_size": 172}),
        ("fmchisel", {"intermediate_size": 172, "num_attention_heads": 2, "num_key_value_heads": 2}),
    ],
)
def test_a_tool_cuts_what_it_can_once(name: str, reached: dict[str, int], shared: Path, tmp_path: Path) -> None:
    source = tiny(shared, tmp_path / "data")
    place = cut(name, source, tmp_path)
    shape = ModelShape.from_hf_config(AutoConfig.from_pretrained(source.model)).to_dict()
    found = ModelShape.from_hf_config(AutoConfig.from_pretrained(place / "model")).to_dict()
    assert {key: size for key, size in found.items() if size != shape[key]}.items() >= reached.items()
    model, info = AutoModelForCausalLM.from_pretrained(place / "model", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    ids = torch.from_numpy(np.load(place / "rows.npy")[:4]).long()
    assert model(input_ids=ids, labels=ids).loss < math.log(2048)
    figures = json.loads((place / "cut.json").read_text())
    assert 0 < figures["before_mb"] < figures["peak_mb"] < 10_000
    assert figures["seconds"] > 0
    written = (place / "cut.json").stat().st_mtime_ns
    assert cut(name, source, tmp_path) == place
    assert (place / "cut.json").stat().st_mtime_ns == written


@needs_peers
@pytest.mark.slow
def test_a_grouped_source_is_cut_by_whole_groups(shared: Path, tmp_path: Path) -> None:
    source = stories(shared, tmp_path / "data")
    config = AutoConfig.from_pretrained(cut("fmchisel", source, tmp_path) / "model")
    assert (config.num_attention_heads, config.num_key_value_heads, config.intermediate_size) == (4, 2, 86)
    assert complete(tmp_path / "cuts" / "stories" / "fmchisel" / "model", source.target, 1, tmp_path / "made")[
        "completed"
    ] == {"num_hidden_layers": [5, 3], "hidden_size": [64, 32]}


def small(folder: Path, **changes: Any) -> Path:
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 4, **changes}
    make_model("llama2", **sizes).save_pretrained(folder)
    return folder


def result(way: str, seed: int, start: float) -> dict[str, Any]:
    losses = {"0": start, "25": start - 1, "50": 0.0, "300": start - 2}
    completed = {"num_hidden_layers": [6, 3], "num_key_value_heads": [4, 2], "num_attention_heads": [4, 2]}
    return {
        "source": "tiny",
        "way": way,
        "seed": seed,
        "steps": 300,
        "looked_at": 0,
        "losses": losses,
        "completed": completed,
        "cut": {},
    }
