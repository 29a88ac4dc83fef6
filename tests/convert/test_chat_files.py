"""Chat template and generation config of the source, in every folder that conversion writes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composer import Trainer
from composer.optim import DecoupledAdamW
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, BertTokenizerFast, GenerationConfig

from llmshearing import ComposerLlama, TargetedPruning
from llmshearing.convert.commands import export, open_checkpoint, shear
from llmshearing.convert.rotate import rotate
from llmshearing.errors import InputError
from llmshearing.score import score_model
from tests.convert.checkpoints import changed, sharded
from tests.convert.test_fit import write
from tests.models import make_model
from tests.training import TARGET, dataset
from tests.tune.small import LLAMA3, make_folder

GENERATION = {"bos_token_id": 0, "eos_token_id": [6, 1], "pad_token_id": 2, "temperature": 0.6, "top_p": 0.9}
MESSAGES = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]
WRITTEN = "<s><|start_header_id|>user<|end_header_id|>\n\nWho?<|eot_id|>"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as instruct models are published, and data of its vocabulary."""
    folder = tmp_path_factory.mktemp("source")
    make_folder(folder / "model", LLAMA3)
    GenerationConfig(**GENERATION, do_sample=True).save_pretrained(folder / "model")
    write(folder / "data", np.random.default_rng(0).integers(0, 400, (12, 16)))
    return folder


def run(source: Path, folder: Path, algorithms: list[Any]) -> Path:
    """A checkpoint that Composer wrote of the model."""
    tokenizer = AutoTokenizer.from_pretrained(source / "model")
    model = ComposerLlama(pretrained=str(source / "model"), tokenizer=tokenizer)
    Trainer(
        model=model,
        train_dataloader=DataLoader(dataset(), batch_size=8),  # type: ignore[arg-type]
        optimizers=DecoupledAdamW(model.parameters(), lr=1e-3),
        algorithms=algorithms,
        max_duration="2ba",
        device="cpu",
        progress_bar=False,
        save_folder=str(folder),
    ).fit()
    return folder / "latest-rank0.pt"


def check(folder: Path) -> None:
    """Whether a folder has both as the source has them."""
    found = json.loads((folder / "generation_config.json").read_text())
    assert {name: found.get(name) for name in GENERATION} == GENERATION
    assert found["do_sample"] is True
    assert GenerationConfig.from_pretrained(folder).eos_token_id == GENERATION["eos_token_id"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == LLAMA3
    assert tokenizer.apply_chat_template(MESSAGES, tokenize=False).startswith(WRITTEN)


def test_a_pruning_checkpoint_carries_them_to_what_is_sheared_and_exported_of_it(source: Path, tmp_path: Path) -> None:
    checkpoint = run(source, tmp_path / "run", [TargetedPruning(TARGET, warmup="1ba")])
    shear(checkpoint, tmp_path / "out")
    check(tmp_path / "out")
    shear(sharded(checkpoint, tmp_path / "sharded"), tmp_path / "from-sharded")
    check(tmp_path / "from-sharded")
    dense = changed(checkpoint, tmp_path / "dense.pt", lambda content: content["state"].update(algorithms=[]))
    export(dense, tmp_path / "exported")
    check(tmp_path / "exported")
    # The way goes on from the sheared folder.
    export(run_from(tmp_path / "out", tmp_path / "continued"), tmp_path / "final")
    check(tmp_path / "final")


def test_code_that_does_not_come_along_is_not_asked_for(tmp_path: Path) -> None:
    """Phi-3 is published with its own, and loaded by those who trust it."""
    make_model("phi3").save_pretrained(tmp_path / "model")
    place = tmp_path / "model/config.json"
    own = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
    place.write_text(json.dumps({**json.loads(place.read_text()), "auto_map": own}))
    export(tmp_path / "model", tmp_path / "out")
    AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)


def test_lists_of_words_stay_byte_for_byte(source: Path, tmp_path: Path) -> None:
    """Whatever a word is made of, and how often it is converted."""
    (tmp_path / "model").mkdir()
    for path in (source / "model").iterdir():
        if path.name in ("config.json", "generation_config.json", "model.safetensors"):
            (tmp_path / "model" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nword\nx\u2028y\n")
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "model")
    words = (tmp_path / "model/vocab.txt").read_bytes()
    export(tmp_path / "model", tmp_path / "exported")
    shear(run(tmp_path, tmp_path / "run", [TargetedPruning(TARGET, warmup="1ba")]), tmp_path / "sheared")
    for folder in ("exported", "sheared"):
        assert (tmp_path / folder / "vocab.txt").read_bytes() == words


def run_from(model: Path, folder: Path) -> Path:
    (folder / "model").parent.mkdir(parents=True)
    (folder / "model").symlink_to(model)
    return run(folder, folder / "checkpoints", [])


def test_a_models_folder_carries_them_through_rotation_scores_and_export(source: Path, tmp_path: Path) -> None:
    rotate(str(source / "model"), tmp_path / "rotated", data=source / "data", num_sequences=4)
    check(tmp_path / "rotated")
    score_model(str(tmp_path / "rotated"), tmp_path / "scores", data=source / "data", num_sequences=4)
    shear(tmp_path / "rotated", tmp_path / "out", scores=tmp_path / "scores", target={"hidden_size": 24})
    check(tmp_path / "out")
    export(tmp_path / "out", tmp_path / "exported", dtype=torch.bfloat16)
    check(tmp_path / "exported")


def test_settings_that_transformers_reads_and_would_not_write_come_along(source: Path, tmp_path: Path) -> None:
    """A temperature without ``do_sample``, as Llama 2 was published with."""
    make_folder(tmp_path / "model", LLAMA3)
    (tmp_path / "model/generation_config.json").write_text(json.dumps(GENERATION))
    rotate(str(tmp_path / "model"), tmp_path / "rotated", data=source / "data", num_sequences=4)
    found = json.loads((tmp_path / "rotated/generation_config.json").read_text())
    assert {name: value for name, value in found.items() if name != "transformers_version"} == GENERATION


def test_a_template_within_the_tokenizers_config_is_kept_as_it_is(source: Path, tmp_path: Path) -> None:
    """As versions of transformers before 4.51 wrote it."""
    make_folder(tmp_path / "model")
    path = tmp_path / "model" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": LLAMA3}))
    assert not (tmp_path / "model" / "chat_template.jinja").exists()
    export(tmp_path / "model", tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == LLAMA3


def test_where_the_generation_config_says_no_more_than_the_config_checkpoints_are_as_before(tmp_path: Path) -> None:
    base = ComposerLlama(pretrained=make_folder(tmp_path / "model"))
    assert base.generation is None
    assert set(base.get_metadata()["model"]) == {"config"}


def test_named_templates_are_said_to_be_left(source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_folder(tmp_path / "model", LLAMA3)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.chat_template = {"default": LLAMA3, "tool_use": "tools"}
    tokenizer.save_pretrained(tmp_path / "model")
    with caplog.at_level(logging.WARNING):
        export(tmp_path / "model", tmp_path / "out")
        model = ComposerLlama(
            pretrained=str(tmp_path / "model"), tokenizer=AutoTokenizer.from_pretrained(tmp_path / "model")
        )
    assert "The named chat templates in" in caplog.text
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == LLAMA3
    assert "only the default one is saved with checkpoints" in caplog.text
    assert model.get_metadata()["tokenizer"]["chat_template.jinja"]["content"] == LLAMA3


def test_a_generation_config_of_another_form_is_refused(source: Path, tmp_path: Path) -> None:
    checkpoint = run(source, tmp_path / "run", [])

    def spoil(content: dict[str, Any]) -> None:
        content["state"]["integrations"]["huggingface"]["model"]["generation_config"]["content"] = "[1"

    with pytest.raises(InputError, match="holds a generation config of another form"):
        export(changed(checkpoint, tmp_path / "bad.pt", spoil), tmp_path / "out")
    make_folder(tmp_path / "model")
    (tmp_path / "model/generation_config.json").write_text("[1]")
    with pytest.raises(InputError, match="is not a generation config"):
        export(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with open_checkpoint(checkpoint) as found:
        assert found.generation()["top_p"] == 0.9
