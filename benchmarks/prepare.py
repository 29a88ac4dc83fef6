"""``python -m benchmarks.prepare``: what `data_prep/prepare.py` costs beside the bare tokenizer loop.

The corpus is the running Python's own source code, twice, with a tokenizer trained on it. The measures take turns and
the table gives their medians: encoding texts that are in memory already; tokenizing files in the same process (reading,
parsing, hashing, encoding, writing); and the first pass with 1 and 2 worker processes, their start included.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from llmshearing.data_prep.demo_corpus import standard_library
from llmshearing.data_prep.readers import SourceFile, find_corpus
from llmshearing.data_prep.tokenize_file import tokenize_file
from llmshearing.data_prep.tokenizer import Encoder, load_tokenizer
from llmshearing.data_prep.workers import tokenize_files

NUM_FILES = 8
COPIES = 2
ROUNDS = 3
BATCH = 64


def write_corpus(folder: Path) -> list[str]:
    """Write the texts as ``NUM_FILES`` files of about equal size; returns the texts."""
    texts = [text for _, text in standard_library() if text] * COPIES
    folder.mkdir(parents=True)
    for number in range(NUM_FILES):
        lines = (json.dumps({"text": text}) + "\n" for text in texts[number::NUM_FILES])
        (folder / f"{number}.jsonl").write_text("".join(lines), encoding="utf-8")
    return texts


def measures(texts: list[str], files: tuple[SourceFile, ...], encoder: Encoder) -> dict[str, Callable[[Path], int]]:
    """What is timed; each takes an empty work folder and returns the number of tokens it made."""

    def bare(_: Path) -> int:
        batches: Iterator[list[str]] = (texts[start : start + BATCH] for start in range(0, len(texts), BATCH))
        return sum(len(ids) for batch in batches for ids in encoder.encode(batch))

    def one_process(work: Path) -> int:
        return sum(
            tokens
            for file in files
            for tokens in tokenize_file(file, encoder, work=work, token_type="uint16", text_key=None)
        )

    def pool(num_workers: int) -> Callable[[Path], int]:
        def run(work: Path) -> int:
            updates = tokenize_files(
                files, encoder, num_workers=num_workers, work=work, token_type="uint16", text_key=None
            )
            return sum(part.tokens for _, finished in updates for _, part in finished)

        return run

    return {
        "bare tokenizer loop": bare,
        "files, same process": one_process,
        "1 worker process": pool(1),
        "2 worker processes": pool(2),
    }


def main() -> None:
    """Measure and print."""
    from llmshearing.data_prep.train_tokenizer import (
        train,  # imports transformers, which workers would wait for at their start
    )

    logging.basicConfig(level=logging.WARNING)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as in the workers
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        texts = write_corpus(folder / "corpus" / "code")
        train(folder / "corpus", folder / "tokenizer", vocab_size=4096, bytes_per_domain=2_000_000)
        encoder = load_tokenizer(str(folder / "tokenizer")).encoder
        timed = measures(texts, find_corpus(folder / "corpus")["code"], encoder)
        speeds: dict[str, list[float]] = {name: [] for name in timed}
        for _ in range(ROUNDS):
            for name, measure in timed.items():
                with tempfile.TemporaryDirectory() as work:
                    start = time.perf_counter()
                    tokens = measure(Path(work))
                    speeds[name].append(tokens / (time.perf_counter() - start))
        medians = {name: statistics.median(values) for name, values in speeds.items()}
    baseline = medians["bare tokenizer loop"]
    sys.stdout.write(f"{'':<22}{'tokens/s':>12}{'x bare':>9}   median of {ROUNDS}, {tokens:,} tokens\n")
    for name, speed in medians.items():
        sys.stdout.write(f"{name:<22}{speed:>12,.0f}{speed / baseline:>9.2f}\n")


if __name__ == "__main__":
    main()
