from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from llmshearing.data.domain import DomainDataset
from llmshearing.data.evaluation import build_evaluators
from llmshearing.errors import InputError
from tests.data.helpers import numbers, write_domain


@pytest.fixture
def eval_data(make_data: Callable[..., Path]) -> Path:
    return make_data(code=5, web=30)


def test_one_evaluator_per_domain_with_every_sequence_once(eval_data: Path) -> None:
    evaluators = build_evaluators(str(eval_data), ["web", "code"], batch_size=4, eval_interval="7ba")
    assert [evaluator.label for evaluator in evaluators] == ["web", "code"]
    for evaluator, domain, sequences in zip(evaluators, (1, 0), (30, 5), strict=True):
        rows = [row for batch in evaluator.dataloader.dataloader for row in numbers(batch)]
        assert rows == [(domain, number) for number in range(sequences)]
        assert evaluator.metric_names == ["LanguageCrossEntropy"]
        assert evaluator.eval_interval is not None


def test_remote_eval_data_is_fetched_whole(eval_data: Path, tmp_path: Path) -> None:
    data = DomainDataset("web", str(tmp_path / "web"), remote=str(eval_data / "web"))
    assert len(list((tmp_path / "web").glob("*.mds"))) == len(list((eval_data / "web").glob("*.mds"))) > 1
    assert len(data) == 30
    assert numbers({"input_ids": [data[29]["input_ids"]]}) == [(1, 29)]


def test_compressed_eval_data(tmp_path: Path) -> None:
    folder = write_domain(tmp_path / "web", 0, 30, compression="zstd")
    assert numbers({"input_ids": [DomainDataset("web", str(folder))[17]["input_ids"]]}) == [(0, 17)]


def test_what_does_not_fit(eval_data: Path) -> None:
    with pytest.raises(InputError, match=r"There is no data in '.*books'"):
        build_evaluators(str(eval_data), ["web", "books"], batch_size=4)
    with pytest.raises(InputError, match="sequences of 8 tokens, where 16 are expected"):
        build_evaluators(str(eval_data), ["web"], batch_size=4, seq_len=16)
    data = DomainDataset("web", str(eval_data / "web"), vocab_size=2)
    with pytest.raises(InputError, match="Sample 3 of domain 'web' holds token ids"):
        data[3]


def test_a_domain_without_samples_is_named(tmp_path: Path) -> None:
    write_domain(tmp_path / "web", 0, 3)
    write_domain(tmp_path / "empty", 1, 0)
    with pytest.raises(InputError, match=r"Domain 'empty' has no sequences in '.*empty'"):
        build_evaluators(str(tmp_path), ["web", "empty"], batch_size=4)


def test_the_tokenizer_bounds_the_ids(eval_data: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a")))
    (evaluator,) = build_evaluators(str(eval_data), ["web"], batch_size=4, tokenizer=tokenizer)
    with pytest.raises(InputError, match="but the vocabulary has 2"):
        next(iter(evaluator.dataloader.dataloader))
