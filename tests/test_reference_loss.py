"""The reference losses: agreement with Composer's metric, and the paper's scaling-law predictions."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from streaming import MDSWriter
from transformers import LlamaConfig, LlamaForCausalLM

from llmshearing import DynamicBatchLoading
from llmshearing.errors import InputError
from llmshearing.power_law import fit_power_law
from llmshearing.reference_loss.__main__ import main
from llmshearing.reference_loss.evaluate import evaluate
from llmshearing.reference_loss.fit import ModelLosses, predict, read_losses

VOCABULARY, SEQUENCE = 64, 32

# Sheared LLaMA: measured losses of Llama-2 7B, 13B and 70B, and the predictions that its experiments used.
SIZES = {"7B": 6_738_415_616, "13B": 13_015_864_320, "70B": 68_976_648_192}
MEASURED = {
    "cc": (1.7520, 1.6680, 1.4621),
    "github": (0.6216, 0.5791, 0.4890),
    "book": (1.9063, 1.8242, 1.6450),
    "stackexchange": (1.4482, 1.3936, 1.2805),
    "wiki": (1.4844, 1.3945, 1.2118),
    "arxiv": (1.2637, 1.2109, 1.1148),
    "c4": (1.9219, 1.8486, 1.6848),
}
PREDICTED = {
    2_701_560_320: (1.8712, 0.6883, 2.0325, 1.5353, 1.6297, 1.3560, 2.0328),
    1_345_423_360: (1.9643, 0.7459, 2.1393, 1.6117, 1.7590, 1.4449, 2.1251),
    373_867_520: (2.1401, 0.8694, 2.3625, 1.7791, 2.0470, 1.6637, 2.3139),
}
LLAMA2 = [
    ModelLosses(name, size, {domain: losses[index] for domain, losses in MEASURED.items()})
    for index, (name, size) in enumerate(SIZES.items())
]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=SEQUENCE, initializer_range=0.3,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_domain(folder: Path, rows: np.ndarray, *, compression: str | None = None) -> None:
    """Small shards, so that reading crosses their borders."""
    columns = {"tokens": f"ndarray:{rows.dtype}:{rows.shape[1]}"}
    settings: dict[str, Any] = {
        "columns": columns,
        "size_limit": 600,
        "progress_bar": False,
        "compression": compression,
    }
    with MDSWriter(out=str(folder), **settings) as writer:
        for row in rows:
            writer.write({"tokens": row})


@pytest.fixture(scope="module")
def rows() -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    return {
        "wiki": random.integers(0, VOCABULARY, (13, SEQUENCE)).astype(np.uint16),
        "code": random.integers(0, 7, (5, SEQUENCE)).astype(np.uint32),
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, rows: dict[str, np.ndarray]) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for domain, tokens in rows.items():
        write_domain(folder / "eval" / domain, tokens)
    return folder


def test_eval_agrees_with_composers_metric(model_folder: Path, data: Path, rows: dict[str, np.ndarray]) -> None:
    from composer import Evaluator, Trainer
    from composer.metrics.nlp import LanguageCrossEntropy
    from composer.models import HuggingFaceModel
    from torch.utils.data import DataLoader

    result = evaluate(str(model_folder), data, batch_size=4)
    model = HuggingFaceModel(
        LlamaForCausalLM.from_pretrained(model_folder),
        eval_metrics=[LanguageCrossEntropy()],
        use_logits=True,
        shift_labels=True,
    )
    samples: dict[str, Any] = {
        domain: [{"input_ids": torch.tensor(row), "labels": torch.tensor(row)} for row in tokens.astype(np.int64)]
        for domain, tokens in rows.items()
    }
    trainer = Trainer(
        model=model,
        device="cpu",
        eval_dataloader=[
            Evaluator(label=domain, dataloader=DataLoader(rows, batch_size=3)) for domain, rows in samples.items()
        ],
    )
    trainer.eval()
    for domain in rows:
        metric = trainer.state.eval_metrics[domain]["LanguageCrossEntropy"]
        assert result["losses"][domain] == pytest.approx(metric.compute().item(), rel=1e-6)
    trainer.close()


def test_eval_reproduces_the_recorded_losses_of_a_trained_model(shared: Path, tmp_path: Path) -> None:
    recorded = json.loads((shared / "golden/upstream_tiny_run.json").read_text())["source"]["eval_losses"]
    for domain in recorded:
        write_domain(tmp_path / domain, np.load(shared / f"golden/tiny_data/eval_{domain}.npy").astype(np.uint16))
    losses = evaluate(str(shared / "golden/tiny_source"), tmp_path, batch_size=16)["losses"]
    assert losses == pytest.approx(recorded, abs=2e-6)


def test_eval_describes_what_it_measured(model_folder: Path, data: Path, rows: dict[str, np.ndarray]) -> None:
    result = evaluate(str(model_folder), data / "eval", batch_size=2)
    assert result["unit"] == "nats per token"
    assert result["tokens"] == {domain: len(tokens) * (SEQUENCE - 1) for domain, tokens in rows.items()}
    assert result["num_parameters"] == LlamaForCausalLM.from_pretrained(model_folder).num_parameters()


def test_eval_is_token_weighted_over_uneven_batches(model_folder: Path, data: Path) -> None:
    """13 and 5 sequences leave a short last batch for every size above 1, which must not weigh more."""
    one_by_one, five = (evaluate(str(model_folder), data, batch_size=size)["losses"] for size in (1, 5))
    assert one_by_one == pytest.approx(five, rel=1e-6)


def test_eval_in_bfloat16_is_close_to_float32(model_folder: Path, data: Path) -> None:
    exact, rounded = (evaluate(str(model_folder), data, dtype=dtype)["losses"] for dtype in ("float32", "bfloat16"))
    assert rounded == pytest.approx(exact, rel=0.02)
    assert rounded != exact


def test_eval_refuses_tokens_beyond_the_vocabulary(model_folder: Path, tmp_path: Path) -> None:
    write_domain(tmp_path / "cc", np.full((2, SEQUENCE), VOCABULARY, dtype=np.uint16))
    with pytest.raises(InputError, match=r"Sample 0 of domain 'cc' holds token ids from 64 to 64.*vocabulary has 64"):
        evaluate(str(model_folder), tmp_path)


def test_eval_refuses_sequences_beyond_the_models_length(model_folder: Path, tmp_path: Path) -> None:
    write_domain(tmp_path / "cc", np.zeros((2, SEQUENCE + 1), dtype=np.uint16))
    with pytest.raises(InputError, match=r"sequences of 33 tokens.*at most 32"):
        evaluate(str(model_folder), tmp_path)


def test_eval_refuses_an_empty_batch(model_folder: Path, data: Path) -> None:
    with pytest.raises(InputError, match="--batch-size must be at least 1, not 0"):
        evaluate(str(model_folder), data, batch_size=0)


def test_eval_refuses_a_loss_that_is_not_finite(model_folder: Path, data: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(model_folder)
    model.lm_head.weight.data[3] = torch.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="not finite"):
        evaluate(str(tmp_path), data)


@pytest.mark.parametrize("lost", ["shard", "column", "domains", "model"])
def test_eval_names_what_is_missing(lost: str, model_folder: Path, tmp_path: Path) -> None:
    model = str(model_folder)
    if lost == "shard":
        write_domain(tmp_path / "cc", np.zeros((2, SEQUENCE), dtype=np.uint16))
        (tmp_path / "cc" / "shard.00000.mds").unlink()
    elif lost == "column":
        with MDSWriter(out=str(tmp_path / "cc"), columns={"text": "str"}) as writer:
            writer.write({"text": "abc"})
    elif lost == "model":
        write_domain(tmp_path / "cc", np.zeros((2, SEQUENCE), dtype=np.uint16))
        model = str(tmp_path / "nowhere")
    message = {
        "shard": "shard.00000.mds' is missing",
        "column": r"'cc' has columns \['text'\], not 'tokens'",
        "domains": "no prepared domain",
        "model": "Cannot load .*nowhere",
    }
    with pytest.raises(InputError, match=message[lost]):
        evaluate(model, tmp_path)


@pytest.mark.parametrize("num_parameters", PREDICTED)
def test_fit_predicts_the_papers_reference_losses(num_parameters: int) -> None:
    losses = predict(LLAMA2, num_parameters=num_parameters)["losses"]
    assert [round(loss, 4) for loss in losses.values()] == list(PREDICTED[num_parameters])


def test_fit_warns_about_the_papers_own_fit(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        result = predict(LLAMA2, num_parameters=1_345_423_360)
    assert len(result["warnings"]) == 2
    assert result["warnings"][0].startswith("Three models for three parameters")
    assert result["warnings"][1].startswith("cc: the irreducible loss is negative (-2.7980)")
    assert [record.message for record in caplog.records] == result["warnings"]


def test_fit_recovers_a_law_from_more_points() -> None:
    sizes = [1e8, 3e8, 1e9, 4e9, 2e10]
    law = fit_power_law(sizes, [1.3 + 40 * size**-0.21 for size in sizes])
    assert (law.irreducible, law.coefficient, law.exponent) == pytest.approx((1.3, 40, 0.21), rel=1e-9)
    assert law.rmse < 1e-12


def test_fit_is_least_squares_on_noisy_points() -> None:
    sizes = np.array([1e8, 3e8, 1e9, 4e9, 2e10])
    losses = 1.3 + 40 * sizes**-0.21 + np.array([0.01, -0.02, 0.015, -0.01, 0.01])
    law = fit_power_law(sizes.tolist(), losses.tolist())

    def rmse(irreducible: float, coefficient: float, exponent: float) -> float:
        return float(np.sqrt(np.mean((irreducible + coefficient * sizes**-exponent - losses) ** 2)))

    fitted = (law.irreducible, law.coefficient, law.exponent)
    assert rmse(*fitted) == pytest.approx(law.rmse)
    assert 0 < law.rmse < rmse(1.3, 40, 0.21)
    for index in range(3):
        for factor in (0.999, 1.001):
            moved = [value * factor if index == position else value for position, value in enumerate(fitted)]
            assert rmse(*moved) > law.rmse


def measured(*losses: float) -> list[ModelLosses]:
    return [ModelLosses(f"m{i}", 10 ** (8 + i), {"cc": loss}) for i, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("losses", "doubt"),
    [
        ((3.0, 2.9, 2.95, 2.7), "do not fall with every step in model size (3.0000, 2.9000, 2.9500, 2.7000)"),
        ((3.0, 2.9, 2.7), "do not follow a power law"),
        ((3.0, 2.0, 2.0 - 1e-9), "do not follow a power law"),
        ((3.0, 2.6, 2.25), "irreducible loss is negative"),
    ],
)
def test_fit_warns_of_losses_that_follow_no_law(losses: tuple[float, ...], doubt: str) -> None:
    warnings = predict(measured(*losses), num_parameters=10**7)["warnings"]
    assert any(doubt in warning for warning in warnings), warnings


def test_fit_has_no_doubts_about_a_lawful_family() -> None:
    losses = [1.3 + 40 * (10 ** (8 + i)) ** -0.21 for i in range(4)]
    result = predict(measured(*losses), num_parameters=10**7)
    assert result["warnings"] == []
    assert result["losses"]["cc"] == pytest.approx(1.3 + 40 * 1e7**-0.21)


def test_fit_refuses_what_it_cannot_fit() -> None:
    with pytest.raises(InputError, match="at least that many sizes; got 2"):
        predict([*measured(3.0, 2.5), *measured(3.1)], num_parameters=10**7)
    with pytest.raises(InputError, match="Evaluate all models on the same data"):
        predict([*measured(3.0, 2.5), ModelLosses("other", 5, {"wiki": 2.0})], num_parameters=10**7)
    with pytest.raises(InputError, match="--num-parameters 0 must be a positive number"):
        predict(LLAMA2, num_parameters=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "each model needs 'num_parameters' and 'losses'"),
        ("text", "holds neither"),
        ({"num_parameters": 5, "losses": {"cc": -1.0}}, "'cc' of '5 parameters' must be a positive number, not -1.0"),
        ({"num_parameters": "7B", "losses": {"cc": 1.0}}, "'num_parameters' of .* not '7B'"),
        ({"num_parameters": 5, "losses": {"cc": 1.0}, "unit": "bits"}, "are in 'bits'"),
    ],
)
def test_reading_losses_names_what_is_wrong(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "losses.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        read_losses([path])


def test_fit_command_takes_one_file_or_one_per_model(tmp_path: Path) -> None:
    together = tmp_path / "all.json"
    together.write_text(json.dumps({"models": [vars(entry) for entry in LLAMA2]}))
    apart = [tmp_path / f"{entry.model}.json" for entry in LLAMA2]
    for path, entry in zip(apart, LLAMA2, strict=True):
        path.write_text(json.dumps({"unit": "nats per token", **vars(entry), "tokens": {}}))
    outputs = [tmp_path / "a.json", tmp_path / "b.json"]
    for inputs, out in zip([[together], apart], outputs, strict=True):
        main(["fit", *map(str, inputs), "--num-parameters", "2701560320", "--out", str(out)])
    first, second = (json.loads(out.read_text()) for out in outputs)
    assert first == second
    assert round(first["losses"]["cc"], 4) == 1.8712
    assert DynamicBatchLoading(str(outputs[0])).reference_losses == first["losses"]


def test_commands_exit_with_2_on_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["eval", "model", str(tmp_path)], ["fit", str(tmp_path / "x.json"), "--num-parameters", "5"]):
        with pytest.raises(SystemExit) as exit_info:
            main(arguments)
        assert exit_info.value.code == 2
        assert capsys.readouterr().err.startswith("error: ")


def test_eval_command_runs_as_a_module_without_composer(model_folder: Path, data: Path) -> None:
    code = (
        "import runpy, sys; sys.argv[1:] = ['eval', *sys.argv[1:]]\n"
        "runpy.run_module('llmshearing.reference_loss', run_name='__main__')\n"
        "assert 'composer' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(model_folder), str(data)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["losses"]) == {"wiki", "code"}
    assert "eval wiki" in done.stderr
