"""The steps of ``data_prep/filter_with_datatrove.py``: a recipe to copy and change."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
)
from datatrove.pipeline.filters import GopherQualityFilter
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.writers import ParquetWriter
from datatrove.utils.word_tokenizers import WordTokenizer

from llmshearing.data_prep.corpus import SourceFile
from llmshearing.data_prep.readers import Document as Text
from llmshearing.data_prep.readers import read_documents


class Words(WordTokenizer):
    """Words and punctuation marks; datatrove's own word tokenizers want spaCy, or models of each language."""

    def word_tokenize(self, text: str) -> list[str]:
        return re.findall(r"\w+|[^\w\s]", text)

    def sent_tokenize(self, text: str) -> list[str]:
        return re.findall(r"[^.!?\n]+[.!?]*", text)

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [match.span() for match in re.finditer(r"[^.!?\n]+[.!?]*", text)]


class Reader:
    """Every ``world_size``-th of a domain's files; datatrove's own readers of JSON lines stop at a bad one."""

    def __init__(self, files: Sequence[SourceFile], text_key: str | None) -> None:
        self._files, self._text_key = files, text_key

    def __call__(self, data: object, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for file in self._files[rank::world_size]:
            for item in read_documents(file.path, text_key=self._text_key):
                if isinstance(item, Text):
                    yield Document(text=item.text, id=f"{file.key}:{item.line}")


def filter_domain(
    files: Sequence[SourceFile], target: Path, scratch: Path, *, text_key: str | None, tasks: int, workers: int
) -> None:
    """Filter the documents of one domain's files into a folder."""
    config = MinhashConfig()
    kept, signatures, buckets, copies = (str(scratch / name) for name in ("kept", "signatures", "buckets", "copies"))
    stages = (
        (
            tasks,
            [
                Reader(files, text_key),
                GopherQualityFilter(language=Words()),
                ParquetWriter(kept),
            ],
        ),
        (tasks, [ParquetReader(kept), MinhashDedupSignature(signatures, config=config, language=Words())]),
        (config.num_buckets, [MinhashDedupBuckets(signatures, buckets, config=config)]),
        (1, [MinhashDedupCluster(buckets, copies, config=config)]),
        (tasks, [ParquetReader(kept), MinhashDedupFilter(copies), ParquetWriter(str(target))]),
    )
    for number, (count, steps) in enumerate(stages):
        logs = str(scratch / "logs" / str(number))
        LocalPipelineExecutor(steps, tasks=count, workers=workers, logging_dir=logs).run()
