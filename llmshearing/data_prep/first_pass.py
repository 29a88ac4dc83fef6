"""The first pass over a corpus: its files in parts, tokenized by an engine's tasks, and what was wrong with them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llmshearing import storage
from llmshearing.data_prep.corpus import Domains, SourceFile, file_infos, split_file
from llmshearing.data_prep.engine import Engine
from llmshearing.data_prep.holdout import prefix_path
from llmshearing.data_prep.tasks import Job, Result, Task, digest, tokenize
from llmshearing.data_prep.tokenize_file import TokenizedFile, finished_part, printable
from llmshearing.data_prep.work import part_path
from llmshearing.errors import InputError
from llmshearing.storage import Info

log = logging.getLogger("data_prep.prepare")

#: Bytes of a file that are one task, where it can be divided.
PART_BYTES = 1_000_000_000
#: Records that are looked for at a time: a store answers each with a delay.
THREADS = 16


@dataclass(frozen=True)
class Part:
    """A tokenized part of a file, and the number of the file's lines before it."""

    file: SourceFile
    found: TokenizedFile
    lines_before: int


@dataclass(frozen=True)
class Tokenized:
    """What the first pass made of a corpus.

    Attributes:
        parts: of each domain, in order.
        files: by domain and name, what is recorded of each input file.
    """

    parts: dict[str, list[Part]]
    files: dict[str, dict[str, Any]]

    def bad_lines(self, work: str) -> Iterator[tuple[str, int]]:
        """The reports of bad lines, each with the number of lines before its part."""
        for part in (part for parts in self.parts.values() for part in parts):
            if part.found.bad_lines:
                yield part_path(work, part.file, ".bad.jsonl"), part.lines_before


def results(
    engine: Engine,
    task: Task[Result],
    arguments: Sequence[Any],
    on_update: Callable[[int, list[int]], object] = lambda tokens, finished: None,
) -> list[Result]:
    """The results of a task, in the order of its arguments.

    ``on_update`` is called with the tokens done so far and the places of the arguments that are finished since.
    """
    found: dict[int, Result] = {}
    for tokens, finished in engine.run(task, arguments):
        found.update(finished)
        on_update(tokens, [at for at, _ in finished])
    return [found[at] for at in range(len(arguments))]


def tokenize_corpus(
    corpus: Path | str,
    domains: Domains,
    infos: dict[SourceFile, Info],
    *,
    job: Job,
    engine: Engine,
    light_engine: Engine,
    check: Callable[[], None],
) -> Tokenized:
    """Tokenize what no earlier run has.

    Args:
        corpus: where the files are.
        domains: the files.
        infos: their sizes and times when the run began.
        job: what the tasks have in common.
        engine: runs what takes long.
        light_engine: runs the rest.
        check: called now and then; what it raises ends the run.

    Raises:
        InputError: a file cannot be read, or changes meanwhile.
    """
    pieces = {file: split_file(file, info.bytes, part_bytes=PART_BYTES) for file, info in infos.items()}
    sources = [(part, infos[file]) for file, parts in pieces.items() for part in parts]
    sizes = {part: infos[file].bytes // len(parts) for file, parts in pieces.items() for part in parts}

    def finished(source: tuple[SourceFile, Info]) -> tuple[TokenizedFile | None, bool]:
        part = finished_part(job.work, *source)
        if part is None:
            return None, False
        place = prefix_path(job.work, source[0], part, num_tokens=job.eval_tokens, extra=job.packing.extra)
        return part, storage.info(place) is not None

    with ThreadPoolExecutor(THREADS) as pool:
        known = dict(zip(sources, pool.map(finished, sources), strict=True))
    missing = [source for source, (part, _) in known.items() if part is None]
    if len(missing) < len(sources):
        log.info("%d of %d parts of files were tokenized by an earlier run.", len(sources) - len(missing), len(sources))
    missing.sort(key=lambda source: -sizes[source[0]])  # a large part begun last would leave the others idle
    with tqdm(total=sum(sizes[part] for part, _ in missing), desc="tokenizing", unit="B", unit_scale=True) as bar:

        def show(tokens: int, done: list[int]) -> None:
            check()
            speed = tokens / max(bar.format_dict["elapsed"], 1e-9)
            bar.set_postfix_str(f"{tokens:,} tokens, {speed:,.0f} tokens/s", refresh=False)
            bar.update(sum(sizes[missing[at][0]] for at in done))

        made = dict(zip(missing, results(engine, tokenize, missing, show), strict=True))
    incomplete = [source for source, (part, complete) in known.items() if part is not None and not complete]
    made |= zip(incomplete, results(light_engine, tokenize, incomplete, lambda *_: check()), strict=True)
    found = {file: part for (file, _), (part, _) in known.items() if part} | {file: made[file, i] for file, i in made}
    divided = [(file, infos[file]) for file, parts in pieces.items() if parts != [file]]
    local = [source for source in divided if not storage.is_remote(source[0].path)]
    sha256 = {file: digest_ for (file, _), digest_ in zip(local, results(light_engine, digest, local), strict=True)}
    now = file_infos(corpus, domains)
    files: dict[str, dict[str, Any]] = {domain: {} for domain in domains}
    for file, info in infos.items():
        if now[file] != info:
            raise InputError(f"'{file.path}' changed while it was read. Run the command again.")
        content = sha256.get(file) or found[pieces[file][0]].sha256
        kind, value = ("etag", storage.entity_tag(file.path)) if content is None else ("sha256", content)
        files[file.domain][file.name] = {"bytes": info.bytes, "mtime_ns": info.mtime_ns, kind: value}
    parts = {
        domain: [part for file in members for part in _numbered([(piece, found[piece]) for piece in pieces[file]])]
        for domain, members in domains.items()
    }
    return Tokenized(parts, files)


def _numbered(pieces: Sequence[tuple[SourceFile, TokenizedFile]]) -> Iterator[Part]:
    lines = 0
    for piece, found in pieces:
        yield Part(piece, found, lines)
        lines += found.lines


def check_bad_lines(domain: str, parts: Sequence[Part], max_share: float) -> dict[str, int]:
    """The numbers of unreadable lines and of empty documents of a domain.

    Raises:
        InputError: unreadable are more than ``max_share`` of its lines.
    """
    bad = sum(part.found.bad_lines for part in parts)
    empty = sum(part.found.empty_documents for part in parts)
    if bad:
        share = bad / (bad + empty + sum(part.found.documents for part in parts))
        first = next(part for part in parts if part.found.first_bad_line is not None)
        line = first.lines_before + (first.found.first_bad_line or 0)
        where = f"{printable(str(first.file.path))}:{line}: {first.found.first_bad_reason}"
        message = f"Domain '{domain}' has {bad} unreadable lines ({share:.2%}), the first at {where}."
        if share > max_share:
            raise InputError(f"{message} That is above --max-bad-share {max_share}: repair them or raise it.")
        log.warning("%s See bad_lines.jsonl.", message)
    if empty:
        log.warning("Domain '%s' has %d empty documents; they are left out.", domain, empty)
    return {"bad_lines": bad, "empty_documents": empty}
