"""The demo's ways: what they compare, that the control has as many tokens, and that they shear any model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from demo import real, small
from demo.commands import ROOT, SEQ_LEN, Commands, Way
from demo.samples import PROMPTS
from demo.stages import run_stages
from demo.summary import write_summary
from llmshearing import ModelShape
from llmshearing.data_prep import train_tokenizer
from tests.texts import DOMAINS, write_domains

WAYS = {
    "demo": real.make(Commands("demo")),
    "demo-paper": real.make(Commands("demo-paper")),
    "demo-small": small.make(Commands("demo-small")),
}


def batches(way: Way, stage: str) -> int:
    """That the training in a stage's folder takes, by its recipe and what its command says otherwise."""
    (command,) = (
        command
        for step in way.stages
        for command in step.commands
        if f"variables.run={way.commands.stage(stage)}" in command
    )
    settings = [word.removeprefix("max_duration=") for word in command if word.startswith("max_duration=")]
    (recipe,) = (word for word in command if word.endswith(".yaml"))
    return int((settings or [OmegaConf.load(ROOT / recipe).max_duration])[-1].removesuffix("ba"))


@pytest.mark.parametrize("name", WAYS)
def test_the_control_sees_as_many_tokens(name: str) -> None:
    way = WAYS[name]
    size = OmegaConf.load(ROOT / "yamls" / name / "continue.yaml").global_train_batch_size
    looked_at = sum(way.looked_at.values()) / SEQ_LEN / size
    ours = [stage for stage in way.trainings if stage in ("prune", "continue")]
    control = [stage for stage in way.trainings if stage.startswith("control")]
    assert len(ours) == 2
    assert sum(batches(way, stage) for stage in ours) + looked_at == sum(batches(way, stage) for stage in control)


@pytest.mark.parametrize("name", WAYS)
def test_recipes_are_for_the_places_that_the_stages_use(name: str) -> None:
    way = WAYS[name]
    places = {str(output) for stage in way.stages for output in stage.outputs}
    for path in (ROOT / "yamls" / name).glob("*.yaml"):
        variables: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
        named = variables["variables"]
        assert {place for place in named.values() if place.startswith("runs/")} <= {*places, f"runs/{name}"}, path
        assert named["run"] == f"runs/{name}/stages/{path.stem}"


def test_a_target_is_smaller_and_its_sizes_are_round() -> None:
    shape = ModelShape.from_hf_config(AutoConfig.for_model("llama"))  # Llama 7B
    assert real.target_for(shape) == {"num_hidden_layers": 26, "intermediate_size": 8192}
    smallest = ModelShape.from_hf_config(AutoConfig.for_model("llama", num_hidden_layers=1, intermediate_size=1))
    assert real.target_for(smallest) == {"num_hidden_layers": 1, "intermediate_size": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--way", "reel"], "There is no way 'reel'. Choose one of real, paper, small."),
        (["--way", "small", "--source", "x"], "The way 'small' trains its own source; 'x' is for 'real' or 'paper'."),
        (["--source", "tests"], "'{}' has no config.json"),
    ],
)
def test_bad_arguments_are_one_line(arguments: list[str], message: str) -> None:
    done = subprocess.run([sys.executable, "-m", "demo.run", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert message.format(ROOT / "tests") in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_any_model_is_sheared_and_what_came_of_it_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_domains(tmp_path / "demo" / "corpus")
    train_tokenizer.main([str(tmp_path / "demo" / "corpus"), str(tmp_path / "model"), "--vocab-size", "512"])
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=SEQ_LEN,
        tie_word_embeddings=True,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    PreTrainedTokenizerFast.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "model")
    target = real.target_for(ModelShape.from_hf_config(config))
    way = real.make(Commands("demo", given_source=str(tmp_path / "model"), runs=tmp_path), target=target)
    corpus, *stages = way.stages
    wall_s = run_stages(stages, tmp_path / "records", root=ROOT)
    write_summary(way, wall_s)

    printed = capsys.readouterr().out
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert corpus.name == "corpus"
    assert target == {"num_hidden_layers": 4, "intermediate_size": 48}
    assert list(summary["eval_loss"]) == ["source", "sheared", "fitted", "final", "control"]
    assert all({*losses} == {*DOMAINS, "mean"} for losses in summary["eval_loss"].values())
    sizes = summary["parameters"]
    assert sizes["sheared"] == sizes["fitted"] == sizes["final"] == sizes["control"] < sizes["source"]
    final = AutoModelForCausalLM.from_pretrained(tmp_path / "demo" / "final")
    assert {key: getattr(final.config, key) for key in target} == target
    means = {model: losses["mean"] for model, losses in summary["eval_loss"].items()}
    assert means["final"] < means["sheared"]  # training has had an effect
    assert summary["quality"]["source"]["agreement"] == 1.0
    assert set(summary["speed"]) == {"source", "final"}
    assert set(summary["samples"]) == set(PROMPTS)
    tokens = summary["tokens"]
    ours = sum(tokens[stage] for stage in ("scores", "prune", "fit", "continue"))
    assert ours == tokens["control-prune"] + tokens["control"]
    page = (tmp_path / "demo" / "report.html").read_text()
    for shown in (f"After {ours:,} tokens", PROMPTS[0], "agreement with the source"):
        assert shown in printed
    for shown in (real.CONTROL, "What they write", "true continuation found among four", PROMPTS[0]):
        assert shown in page
    assert run_stages(stages, tmp_path / "records", root=ROOT) == wall_s  # all is kept
