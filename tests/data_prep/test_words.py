"""Encoding word by word gives the ids of the whole text, for each kind of tokenizer, or is not done."""

from __future__ import annotations

import json
import logging
import pickle
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from llmshearing.data_prep import word_cache, word_split
from llmshearing.data_prep.corpus import find_corpus
from llmshearing.data_prep.readers import Document, read_documents
from llmshearing.data_prep.tokenizer import FastEncoder, SentencePieceEncoder
from llmshearing.data_prep.train_tokenizer import to_huggingface
from llmshearing.data_prep.word_split import SPACE

MakeEncoder = Callable[[], FastEncoder | SentencePieceEncoder]

PREPEND, REPLACE = normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)


def gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def split_first(expression: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(expression), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


#: Pre-tokenizers of byte-level BPE, and whether they put text into NFC first.
BYTE_LEVEL: dict[str, tuple[Callable[[], pre_tokenizers.PreTokenizer], bool]] = {
    "gpt2": (gpt2, False),
    "smollm2": (lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2()]), False),
    "llama3": (lambda: split_first(word_split._LLAMA3), False),
    "qwen2": (lambda: split_first(word_split._QWEN2), True),
}
#: How fast tokenizers write spaces for a vocabulary of sentencepiece.
MARKED: dict[str, tuple[Any, Any]] = {
    "llama2": (normalizers.Sequence([PREPEND, REPLACE]), None),
    "metaspace-first": (None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
    "metaspace-never": (None, pre_tokenizers.Metaspace(prepend_scheme="never", split=False)),
    "gemma": (REPLACE, pre_tokenizers.Split(" ", "merged_with_previous")),
}


@pytest.fixture(scope="module")
def byte_level(texts: list[str]) -> dict[str, str]:
    """A small tokenizer.json for each pre-tokenizer of byte-level BPE."""
    made = {}
    for name, (pre_tokenizer, nfc) in BYTE_LEVEL.items():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.NFC() if nfc else None
        tokenizer.pre_tokenizer = pre_tokenizer()
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(texts[:200], trainer)
        tokenizer.add_special_tokens(["<|endoftext|>"])
        tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False)])
        made[name] = tokenizer.to_str()
    return made


@pytest.fixture(scope="module")
def makers(sentencepiece_model: Path, huggingface_folder: Path, byte_level: dict[str, str]) -> dict[str, MakeEncoder]:
    """Every kind of encoder that is cut into words."""
    model = sentencepiece_model.read_bytes()
    fast = {"ours": to_huggingface(model).backend_tokenizer}
    for name, (normalizer, pre_tokenizer) in MARKED.items():
        fast[name] = to_huggingface(model).backend_tokenizer
        fast[name].normalizer, fast[name].pre_tokenizer = normalizer, pre_tokenizer
    serialized = {name: backend.to_str() for name, backend in fast.items()} | byte_level
    makers: dict[str, MakeEncoder] = {name: lambda text=text: FastEncoder(text) for name, text in serialized.items()}
    return {"sentencepiece": lambda: SentencePieceEncoder(model), **makers}


ALL = ("sentencepiece", "ours", *MARKED, *BYTE_LEVEL)

# Characters that something treats in its own way, and short runs of them beside ordinary ones.
SPECIAL = (
    " \n\t\r\v\f\x00\x01\x1c\x1f\x7f\x85\xa0\u1680\u2003\u2028\u200b\u200d\u202f\u3000\ufeff"
    "\u2581_'\u2019\xb2\xbd\u0663\u4e00\uff41\ufb01\u212b\u037e\u0301\u0338\u0345\u1100\u1161\u11a8\uac00\U0001f469\U0010ffff\ufffd\ud7ff\ue000"
)
PARTS = st.one_of(
    st.sampled_from(SPECIAL),
    st.sampled_from(
        ["  ", "   ", "\n\n", " \n", "\n ", "\r\n", "'s", "'LL", "<s>", "</s>", "<unk>", "<0x0A>", "<tool_call>"]
    ),
    st.sampled_from(
        ["<|endoftext|>", "def ", "return", "the", "1", "23", "4567", "(", ");", "x" * 70, "ab" * 300, "--"]
    ),
    st.characters(exclude_categories=["Cs"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
)
TEXTS = st.lists(PARTS, max_size=12).map("".join)


@pytest.mark.parametrize("name", ALL)
def test_any_text_has_the_ids_that_it_has_whole(name: str, makers: dict[str, MakeEncoder]) -> None:
    encoder = makers[name]()
    assert encoder._cache is not None

    @settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.lists(TEXTS, max_size=3))
    def check(texts: list[str]) -> None:
        assert encoder.encode(texts) == encoder.encode_whole(texts)

    check()


@pytest.mark.parametrize("name", ALL)
def test_real_texts_have_the_ids_that_they_have_whole(
    name: str, makers: dict[str, MakeEncoder], texts: list[str], unicode_texts: list[str]
) -> None:
    encoder = makers[name]()
    for _ in range(2):  # cold and warm
        assert encoder.encode(texts + unicode_texts) == encoder.encode_whole(texts + unicode_texts)


@pytest.mark.parametrize("kind", ["model", "tokenizer.json"])
def test_llamas_tokenizer_gives_the_same_ids_on_all_sample_documents(kind: str, shared: Path) -> None:
    path = shared / "data/llama_tokenizer.model"
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    if kind == "model":
        encoder: FastEncoder | SentencePieceEncoder = SentencePieceEncoder(path.read_bytes())
    else:
        backend = to_huggingface(path.read_bytes()).backend_tokenizer
        backend.normalizer, backend.pre_tokenizer = MARKED["llama2"]
        encoder = FastEncoder(backend.to_str())
    assert encoder._cache is not None
    files = [file for domain in find_corpus(shared / "data/sample_redpajama").values() for file in domain]
    documents = (item for file in files for item in read_documents(file.path) if isinstance(item, Document))
    texts = [document.text for document in documents]
    assert len(texts) == 4260
    assert encoder.encode(texts) == processor.encode(texts, num_threads=1)


def test_a_text_of_many_slices_has_the_ids_that_it_has_whole(
    makers: dict[str, MakeEncoder], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(word_cache, "SLICE", 50)
    generator = random.Random(0)
    text = "".join(generator.choice([*texts[:50], " ", "  ", "\n"]) for _ in range(40))
    for name in ALL:
        encoder = makers[name]()
        assert encoder.encode([text]) == encoder.encode_whole([text]), name


def test_memory_is_bounded_and_a_full_cache_goes_on(
    makers: dict[str, MakeEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(word_cache, "CACHE_BYTES", 1 << 18)
    encoder = makers["sentencepiece"]()
    generator = random.Random(0)
    text = " ".join("".join(generator.choices("abcdefgh", k=generator.choice((8, 60)))) for _ in range(5_000))
    expected = encoder.encode_whole([text])
    cache = encoder._cache
    assert cache is not None
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for part in text.split(" "):
            cache.encode([part])
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before in range(1 << 16, 1 << 18)
    assert encoder.encode([text]) == expected


def test_long_words_are_not_kept_and_common_ones_stay(
    makers: dict[str, MakeEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = makers["sentencepiece"]()
    cache = encoder._cache
    assert cache is not None
    encoder.encode(["y" * (word_cache.LONGEST_WORD + 1)])
    assert max(map(len, cache._known)) <= word_cache.LONGEST_WORD
    asked: list[str] = []
    encode_words = cache._encode_words

    def recording(words: Any) -> list[list[int]]:
        asked.extend(words)
        return encode_words(words)

    monkeypatch.setattr(cache, "_encode_words", recording)
    monkeypatch.setattr(word_cache, "CACHE_BYTES", 20_000)
    for number in range(2000):
        encoder.encode([f"common {number:x}z"])
    assert len(asked) > 1000
    assert asked.count(f"{SPACE}common") == 1


def test_a_copy_for_a_worker_starts_with_an_empty_cache(makers: dict[str, MakeEncoder], texts: list[str]) -> None:
    for name in ("sentencepiece", "ours"):
        encoder = makers[name]()
        size, expected = len(pickle.dumps(encoder)), encoder.encode(texts)
        assert len(pickle.dumps(encoder)) == size
        assert pickle.loads(pickle.dumps(encoder)).encode(texts) == expected


def refusal(make: MakeEncoder, caplog: pytest.LogCaptureFixture) -> str:
    """Why an encoder's texts are not cut."""
    caplog.clear()
    with caplog.at_level(logging.INFO):
        encoder = make()
    assert encoder._cache is None
    return caplog.messages[-1]


def test_sentencepiece_models_without_separable_words_are_encoded_whole(
    sentencepiece_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def changed(change: Callable[[Any], object]) -> MakeEncoder:
        proto = ModelProto.FromString(sentencepiece_model.read_bytes())
        change(proto)
        return lambda: SentencePieceEncoder(proto.SerializeToString())

    def set_piece(proto: Any) -> None:
        proto.pieces[-1].piece = f"a{SPACE}b"

    def no_bytes(proto: Any) -> None:
        for piece in proto.pieces:
            piece.type = piece.NORMAL if piece.type == piece.BYTE else piece.type
        proto.trainer_spec.byte_fallback = False

    assert f"'…a{SPACE}…' reach beyond a space" in refusal(changed(set_piece), caplog)
    removing = changed(lambda proto: setattr(proto.normalizer_spec, "remove_extra_whitespaces", True))
    assert "it removes spaces" in refusal(removing, caplog)
    assert "no byte for what it does not know" in refusal(changed(no_bytes), caplog)
    unigram = changed(lambda proto: setattr(proto.trainer_spec, "model_type", proto.trainer_spec.UNIGRAM))
    assert "not of kind BPE" in refusal(unigram, caplog)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"normalizer": {"type": "NFKC"}}, "normalizer is unknown"),
        ({"normalizer": {"type": "Lowercase"}}, "normalizer is unknown"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "pre-tokenizer is unknown"),
        ({"model.dropout": 0.5}, "not plain BPE"),
        ({"model.ignore_merges": True}, "looks up words"),
        ({"model.byte_fallback": False}, "no byte for what it does not know"),
        ({"model.continuing_subword_prefix": "##"}, "words have marks"),
    ],
)  # fmt: skip
def test_fast_tokenizers_without_separable_words_are_encoded_whole(
    changes: dict[str, Any], reason: str, huggingface_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = json.loads((huggingface_folder / "tokenizer.json").read_text())
    for key, value in changes.items():
        *place, last = key.split(".")
        (content[place[0]] if place else content)[last] = value
    if "model.continuing_subword_prefix" in changes:  # which merges would have to have
        content["model"]["merges"] = []
    assert reason in refusal(lambda: FastEncoder(json.dumps(content)), caplog)


def test_byte_level_tokenizers_of_another_kind_are_encoded_whole(
    byte_level: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    content = json.loads(byte_level["gpt2"])
    content["pre_tokenizer"]["add_prefix_space"] = True
    assert "puts a space in front" in refusal(lambda: FastEncoder(json.dumps(content)), caplog)
    content = json.loads(byte_level["llama3"])
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\S+\s+"}
    assert "pre-tokenizer is unknown" in refusal(lambda: FastEncoder(json.dumps(content)), caplog)


def test_words_that_come_out_otherwise_after_all_are_noticed(
    sentencepiece_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    words = word_split.of_sentencepiece(sentencepiece_model.read_bytes())
    wrong = word_split.Words(words.pattern, "never", marked=True)
    monkeypatch.setattr("llmshearing.data_prep.tokenizer.of_sentencepiece", lambda model: wrong)
    message = refusal(lambda: SentencePieceEncoder(sentencepiece_model.read_bytes()), caplog)
    assert "its words have other ids alone" in message


def test_words_are_as_short_as_the_vocabulary_allows() -> None:
    def words(pieces: list[str], text: str) -> list[str]:
        return word_split._pattern(pieces).findall(text)

    text = "a1, (b)\n\n  c"
    assert words(["ab", ");", "▁a", "▁("], text) == ["a", "1", ",", " (", "b", ")", "\n\n", "  c"]
    assert words([");\n"], text) == ["a", "1", ",", " (", "b", ")\n\n", "  c"]
    assert words(["x'"], text) == ["a", "1", ",", " (b)", "\n\n", "  c"]
    assert words(["a1", "1,"], text) == ["a1,", " (b)", "\n\n", "  c"]
    assert words([], "   ") == ["   "]
