"""Recipes made for a model, a target and a budget: the rules behind them, that they are clean, and that they run."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streaming import MDSWriter
from transformers import AutoConfig, AutoModelForCausalLM

from llmshearing import ModelShape
from llmshearing.dry_run.report import Devices
from llmshearing.errors import InputError
from llmshearing.new_recipe.__main__ import main
from llmshearing.new_recipe.plan import LARGEST_BATCH, Machine, make_plan
from llmshearing.new_recipe.write import write_recipes
from llmshearing.recipe import load_recipe
from llmshearing.report.compute import compute
from tests.convert.tokenizers import make_tokenizer
from tests.dry_runs import run
from tests.forkserver import ForkServer
from tests.models import FAMILIES, SIZES, make_config
from tests.small_recipes import make_model_and_text, run_command

LLAMA_7B = ModelShape(4096, 11008, 32, 32, 32, 128, 32000)
TO_2_7B = dataclasses.replace(
    LLAMA_7B, hidden_size=2560, intermediate_size=6912, num_attention_heads=20, num_key_value_heads=20
)
EIGHT = Machine(8, gpu=True, memory=80e9)
LAPTOP = Machine(1, gpu=False, memory=0)


def test_the_papers_budget_gives_the_papers_settings() -> None:
    plan = make_plan(LLAMA_7B, TO_2_7B, tokens=50e9, seq_len=4096, machine=EIGHT, learned=None)
    assert plan.learned
    assert not plan.rotated
    assert (plan.prune.batches, plan.prune.batch_size, plan.prune.interval, plan.prune.lr) == (3200, 32, 50, 1e-4)
    assert (plan.after.batch_size, plan.after.interval, plan.after.lr) == (256, 400, 1e-4)
    assert 47_000 < plan.after.batches < 51_200
    assert plan.prune.sharded
    assert plan.prune.warmup == 320


def test_a_small_budget_is_cut_and_fitted_in_a_thousand_batches() -> None:
    plan = make_plan(LLAMA_7B, TO_2_7B, tokens=1e9, seq_len=4096, machine=EIGHT, learned=None)
    assert not plan.learned
    assert plan.rotated
    assert plan.prune.batches == 1
    assert 900 < plan.after.batches < 1000
    assert plan.after.batch_size * 4096 == LARGEST_BATCH
    tiny = make_plan(LLAMA_7B, TO_2_7B, tokens=16e6, seq_len=512, machine=LAPTOP, learned=None)
    assert (tiny.after.batch_size, tiny.after.batches) == (32, 975)


@pytest.mark.parametrize("tokens", [3e5, 1e7, 1e9, 7e10, 1e12])
@pytest.mark.parametrize("devices", [1, 2, 8, 64])
@pytest.mark.parametrize("learned", [True, False])
def test_plans_spend_the_budget_and_share_batches_evenly(tokens: float, devices: int, learned: bool) -> None:
    machine = Machine(devices, gpu=True, memory=24e9)
    plan = make_plan(LLAMA_7B, TO_2_7B, tokens=tokens, seq_len=256, machine=machine, learned=learned)
    spent = sum(run.batches * run.batch_size * 256 for run in (plan.prune, plan.after))
    assert 0.8 * tokens <= spent <= tokens * 1.001
    for run_ in (plan.prune, plan.after):
        assert run_.batch_size % (devices * run_.microbatch_size) == 0
        assert run_.warmup < run_.batches
        assert run_.interval >= 1


def test_few_tokens_and_odd_devices_are_refused() -> None:
    with pytest.raises(InputError, match=r"--tokens is 1,000: 0 batches .* Give 49,152 at least\."):
        make_plan(LLAMA_7B, TO_2_7B, tokens=1000, seq_len=512, machine=LAPTOP, learned=None)
    with pytest.raises(InputError, match="cannot be shared evenly by 3 devices"):
        make_plan(LLAMA_7B, TO_2_7B, tokens=1e9, seq_len=512, machine=Machine(3, True, 80e9), learned=None)


def write_data(folder: Path, *, length: int = 32) -> Path:
    rows = np.random.default_rng(0).integers(3, SIZES["vocab_size"], (30, length))
    for split in ("train", "eval"):
        for domain, part in (("books & more", rows), ("code", rows[:10])):
            columns = {"tokens": f"ndarray:uint16:{length}"}
            with MDSWriter(out=str(folder / split / domain), columns=columns) as writer:
                for row in part:
                    writer.write({"tokens": row.astype(np.uint16)})
    return folder


@pytest.mark.parametrize("learned", [True, False], ids=["learned", "scored"])
@pytest.mark.parametrize("devices", [0, 1, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_recipes_of_every_family_are_clean(
    family: str, devices: int, learned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_config(family).save_pretrained("a model")
    make_tokenizer().save_pretrained("a model")
    data = write_data(Path("data"))
    source = ModelShape.from_hf_config(AutoConfig.from_pretrained("a model"))
    wanted = str(round(0.7 * source.num_parameters()))
    job = write_recipes(
        "a model", "my", data=data, tokens=3e5, parameters=wanted, devices=devices, gpu_memory=24e9, learned=learned
    )
    assert job.plan.learned == learned
    planned = Devices(max(1, devices))
    text, findings = run(load_recipe("my/prune.yaml", []), planned)
    assert not findings.problems
    assert f": {job.target.num_parameters():,} parameters, " in text
    text, findings = run(load_recipe("my/continue.yaml", []), planned)
    assert not findings.problems
    assert f": {job.target.num_parameters():,} parameters\n" in text
    for stage in ("prune", "continue"):
        lines = Path(f"my/{stage}.yaml").read_text().splitlines()
        per_domain = ("      ", "  - {label: ")
        assert all("#" in line or ":" not in line or line.startswith(per_domain) for line in lines)


def test_one_gpu_is_not_sharded_and_a_model_that_fits_is_not_either() -> None:
    small = dataclasses.replace(TO_2_7B, hidden_size=1280, num_attention_heads=10, num_key_value_heads=10)
    for machine in (Machine(1, True, 80e9), Machine(8, True, 80e9)):
        plan = make_plan(TO_2_7B, small, tokens=1e9, seq_len=2048, machine=machine, learned=False)
        assert not plan.after.sharded
    assert make_plan(LLAMA_7B, TO_2_7B, tokens=1e9, seq_len=2048, machine=EIGHT, learned=False).prune.sharded


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokens", "none"], "--tokens is 'none'; write it as 1.3e9 or 1.3B."),
        (["--tokens", "5"], "--tokens is 5: 0 batches of 8 sequences"),
        (["--data", "nowhere"], "'nowhere' holds no prepared domain"),
        (["--devices", "-1"], "--devices is -1; give the number of GPUs, or 0 for the CPU."),
        (["--target", '{"hidden_size": 24,'], "which is not JSON"),
        (["--target", "hidden_size=4800"], "target.hidden_size is 4800, but the source model has 48"),
        (["--target", "num_hidden_layers=4"], "there is nothing to prune"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    make_config("llama3").save_pretrained("model")
    write_data(Path("data"))
    defaults = {"--data": "data", "--target": "hidden_size=24", "--tokens": "1e6", "--out": "my"}
    given = {**defaults, **dict(zip(options[::2], options[1::2], strict=True))}
    with pytest.raises(SystemExit) as stopped:
        main(["model", *(word for option in given.items() for word in option)])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not Path("my").exists()


@pytest.mark.parametrize("domain", ["c# & co", "👩 code", "𠮷 野", "yes", "1", "a: 'b' \"c\""])
def test_a_domain_may_have_any_name(domain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_config("llama3").save_pretrained("model")
    data = write_data(Path("data"))
    for split in ("train", "eval"):
        (data / split / "code").rename(data / split / domain)
    write_recipes("model", "my", data=data, tokens=1e6, target={"hidden_size": 24})
    recipe = load_recipe("my/prune.yaml", [])
    assert set(recipe["train_loader"]["dataset"]["proportions"]) == {"books & more", domain}
    places = {entry["label"]: entry["local"] for entry in recipe["eval_loader"]}
    assert places[domain] == f"data/eval/{domain}"


def test_what_is_there_stays_unless_it_may_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_config("llama3").save_pretrained("model")
    write_data(Path("data"))
    Path("my").mkdir()
    Path("my/notes.txt").write_text("mine")
    command = ["model", "--data", "data", "--target", "hidden_size=24", "--tokens", "1e6", "--out", "my"]
    main(command)
    first = Path("my/prune.yaml").read_text()
    with pytest.raises(SystemExit):
        main([*command, "--masks", "learned"])
    assert "'my/prune.yaml' exists already" in capsys.readouterr().err
    assert Path("my/prune.yaml").read_text() == first
    main([*command, "--masks", "learned", "--overwrite"])
    assert Path("my/prune.yaml").read_text() != first
    assert Path("my/notes.txt").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama2", "qwen3-tied"])
def test_the_commands_that_are_printed_lead_to_a_model(
    family: str,
    forked: ForkServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    make_model_and_text(family)
    prepare = "python data_prep/prepare.py corpus data --tokenizer model --seq-len 64 --eval-sequences 4 --workers 1"
    run_command(shlex.split(prepare), forked)
    target: dict[str, Any] = {"num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 48}
    capsys.readouterr()  # of the tokenizer's training
    main(["model", "--data", "data", "--target", json.dumps(target), "--tokens", "8000", "--out", "my"])
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split(" -m ")[1].split()[0].removeprefix("llmshearing.") for line in lines] == [
        *["reference_loss", "convert", "score", "train", "convert", "train", "convert", "report"],
    ]
    for line in lines:
        run_command(shlex.split(line), forked)
    final = AutoModelForCausalLM.from_pretrained("runs/my/final")
    assert {key: getattr(final.config, key) for key in target} == target
    record = json.loads(Path("runs/my/sheared/shearing.json").read_text())
    assert record["fit"]["losses"]["after"] < record["fit"]["losses"]["before"]
    assert Path("runs/my/report.html").is_file()
    parts = {part.name: part.flops for part in compute(["runs/my"]).parts}
    assert list(parts) == [
        *["prune: scores", "prune: training", "prune: evaluation"],
        *["continue: training", "continue: teacher", "continue: evaluation", "shearing: fit"],
    ]
    assert all(flops > 0 for flops in parts.values())
