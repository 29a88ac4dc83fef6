"""``python -m benchmarks.prepare``: tokens per second and core of what `data_prep/prepare.py` tokenizes with.

By domain: sentencepiece and ``tokenizers`` as they are, with texts whole; and ours word by word, with an empty cache
("cold") and with one that has met the same texts ("warm"), for the same vocabulary as ``*.model`` and as
``tokenizer.json``. Text and vocabulary are RedPajama's and LLaMA's where they lie in ``../shared``, and otherwise the
running Python's own source code and the words in it, with a tokenizer trained on both. ``--tokenizer FOLDER`` measures
another Hugging Face tokenizer on the same text. Measures take turns; the table gives medians. All ids are compared.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import statistics
import sys
import tempfile
import time
import tokenize
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from llmshearing.data_prep.corpus import find_corpus
from llmshearing.data_prep.demo_corpus import standard_library
from llmshearing.data_prep.readers import Document, read_documents
from llmshearing.data_prep.tokenizer import FastEncoder, SentencePieceEncoder, load_tokenizer

SHARED = Path(__file__).resolve().parents[2] / "shared"
DOMAINS = ("c4-rp", "github", "arxiv", "book")  # of the sample; the others are small, or like these

Texts = dict[str, list[str]]
MakeEncoder = Callable[[], Any]  # FastEncoder or SentencePieceEncoder
Row = tuple[str, str, str]  # library, "whole", "cold" or "warm", domain


def demo_texts() -> Texts:
    """Python's standard library by module, and the strings and comments in it."""
    texts: Texts = {"code": [], "words": []}
    for _, module in standard_library():
        tokens = tokenize.generate_tokens(io.StringIO(module).readline)
        texts["code"].append(module)
        texts["words"].append("\n".join(t.string for t in tokens if t.type in (tokenize.STRING, tokenize.COMMENT)))
    return texts


def sample_texts() -> Texts:
    """The sample's documents."""
    corpus = find_corpus(SHARED / "data/sample_redpajama")
    items = {domain: [item for file in corpus[domain] for item in read_documents(file.path)] for domain in DOMAINS}
    return {domain: [item.text for item in found if isinstance(item, Document)] for domain, found in items.items()}


def demo_model(texts: Texts) -> bytes:
    """A sentencepiece model trained on those texts."""
    from llmshearing.data_prep.train_tokenizer import train

    with tempfile.TemporaryDirectory() as temporary:
        for domain, documents in texts.items():
            path = Path(temporary, "corpus", domain, "0.jsonl")
            path.parent.mkdir(parents=True)
            path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
        train(Path(temporary, "corpus"), Path(temporary, "out"), vocab_size=4096, bytes_per_domain=2_000_000)
        return Path(temporary, "out", "tokenizer.model").read_bytes()


def as_shipped(model: bytes) -> str:
    """The ``tokenizer.json`` of a sentencepiece model as Llama 2's is: with nothing that splits texts."""
    from tokenizers import normalizers

    from llmshearing.data_prep.train_tokenizer import SPACE, to_huggingface

    backend = to_huggingface(model).backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    backend.pre_tokenizer = None
    return backend.to_str()


def turn(texts: Texts, makers: dict[str, MakeEncoder]) -> Iterator[tuple[Row, int, float]]:
    """Measure everything once: row and domain, tokens, and seconds of this process's CPU time."""
    for domain, documents in texts.items():
        for library, make in makers.items():
            encoder, seen = make(), []
            for state in ("whole", "cold", "warm"):
                encode = encoder.encode_whole if state == "whole" else encoder.encode
                start = time.process_time()
                ids = encode(documents)
                seconds = time.process_time() - start
                seen.append(ids)
                yield (library, state, domain), sum(map(len, ids)), seconds
            if not seen[0] == seen[1] == seen[2]:
                raise RuntimeError(f"{library} has other ids word by word in domain '{domain}'.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", metavar="FOLDER", help="of a Hugging Face tokenizer to measure instead")
    parser.add_argument("--rounds", type=int, default=5, help="of which medians are taken (default: 5)")
    args = parser.parse_args(arguments)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as in the workers
    has_sample = (SHARED / "data/sample_redpajama").is_dir()
    texts = sample_texts() if has_sample else demo_texts()
    makers: dict[str, MakeEncoder]
    if args.tokenizer is not None:
        encoder = load_tokenizer(args.tokenizer).encoder
        makers = {"tokenizers": lambda: pickle.loads(pickle.dumps(encoder))}  # a new cache
    else:
        model = (SHARED / "data/llama_tokenizer.model").read_bytes() if has_sample else demo_model(texts)
        serialized = as_shipped(model)
        makers = {"sentencepiece": lambda: SentencePieceEncoder(model), "tokenizers": lambda: FastEncoder(serialized)}
    seconds: dict[Row, list[float]] = defaultdict(list)
    tokens: dict[str, int] = {}
    for _ in range(args.rounds):
        for row, count, time_taken in turn(texts, makers):
            seconds[row].append(time_taken)
            tokens[row[2]] = count
    sys.stdout.write(f"{'Mtok/s of a core':<20}{''.join(f'{domain:>9}' for domain in texts)}{'all':>9}{'ratio':>8}\n")
    for library in makers:
        baseline = None
        for state in ("whole", "cold", "warm"):
            medians = [statistics.median(seconds[library, state, domain]) for domain in texts]
            speeds = [tokens[domain] / median / 1e6 for domain, median in zip(texts, medians, strict=True)]
            together = sum(tokens.values()) / sum(medians) / 1e6
            baseline = baseline or together
            name = library if state == "whole" else f"  by word, {state}"
            cells = "".join(f"{speed:>9.2f}" for speed in [*speeds, together])
            sys.stdout.write(f"{name:<20}{cells}{together / baseline:>8.2f}\n")
    counts = ", ".join(f"{domain} {count:,}" for domain, count in tokens.items())
    sys.stdout.write(f"Medians of {args.rounds}. Tokens: {counts}. Ids are the same in all rows of a vocabulary.\n")


if __name__ == "__main__":
    main()
