"""The steps of a preparation as tasks: ``task(job, argument)``, on any process of any machine that sees ``job.work``.

What a task writes depends on nothing but its input and is found by a name that its argument determines, so it may be
done again, by several at once, or not at all where an earlier run has.

A task is a generator: it yields what it has done since the last time, in tokens, so that whoever runs it can show that
and stop in between; its value is small.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from llmshearing import storage
from llmshearing.data_prep import dedup
from llmshearing.data_prep.corpus import SourceFile
from llmshearing.data_prep.count_part import PartCounts, count_part, counted_part
from llmshearing.data_prep.holdout import write_prefix
from llmshearing.data_prep.mds import ShardFormat
from llmshearing.data_prep.pack import PackSettings, ShardRange, SplitCounts, pack_eval, pack_shards
from llmshearing.data_prep.tokenize_file import TokenizedFile, file_sha256, finished_part, tokenize_file
from llmshearing.data_prep.tokenizer import Encoder
from llmshearing.data_prep.work import part_path
from llmshearing.errors import InputError
from llmshearing.fileio import read_json
from llmshearing.storage import Info, join

Result = TypeVar("Result")


@dataclass(frozen=True)
class Job:
    """What all tasks of a run have in common.

    Attributes:
        work: ``OUT/.partial``.
        run: what ``work/run.json`` says while this run is under way.
        encoder: text to ids.
        text_key: see :func:`data_prep.readers.read_documents`.
        packing: how documents become sequences.
        shards: format of the shards.
    """

    work: str
    run: str
    encoder: Encoder
    text_key: str | None
    packing: PackSettings
    shards: ShardFormat

    @property
    def eval_tokens(self) -> int:
        """Tokens held out of each domain, at least."""
        return self.packing.eval_sequences * self.packing.seq_len


Task = Callable[[Job, Any], Generator[int, None, Result]]


def tokenize(job: Job, argument: tuple[SourceFile, Info]) -> Generator[int, None, TokenizedFile]:
    """Tokenize a part, whose file has this size and time, and find what it could give to the eval split."""
    file, info = argument
    part = finished_part(job.work, file, info)
    if part is None:
        _check_same_file(file, info)
        yield from tokenize_file(
            file, job.encoder, work=job.work, token_type=job.packing.token_type, text_key=job.text_key
        )
        part = finished_part(job.work, file, info)
        if part is None:
            raise InputError(f"'{file.path}' changed while it was read. Run the command again.")
    write_prefix(job.work, file, part, num_tokens=job.eval_tokens, extra=job.packing.extra)
    return part


def digest(job: Job, argument: tuple[SourceFile, Info]) -> Generator[int, None, str]:
    """The SHA-256 of a file of a disk, which has this size and time."""
    file, info = argument
    place = part_path(job.work, file, ".sha256.json")
    record: dict[str, Any] = read_json(place) if storage.info(place) else {}
    if Info(record.get("bytes", -1), record.get("mtime_ns", -1)) != info:
        _check_same_file(file, info)
        record = {**asdict(info), "sha256": file_sha256(file.path)}
        storage.write_json(place, record)
    yield 0
    return record["sha256"]


def sort(job: Job, argument: tuple[SourceFile, int, str, int]) -> Generator[int, None, None]:
    """Sort the hashes of a part, the ``number``-th of all, for so many partitions."""
    file, number, packed, num_partitions = argument
    yield 0
    dedup.sort_part(file, number=number, work=job.work, packed=packed, num_partitions=num_partitions)


def find_copies(job: Job, argument: tuple[int, int, str, int]) -> Generator[int, None, None]:
    """Find the copies in a partition of so many parts."""
    partition, num_parts, packed, num_partitions = argument
    yield 0
    dedup.find_copies(partition, num_parts=num_parts, work=job.work, packed=packed, num_partitions=num_partitions)


def count(job: Job, argument: tuple[SourceFile, int, int, str, int]) -> Generator[int, None, PartCounts]:
    """Count what a part, the ``number``-th of so many, gives to the splits, without copies if there are partitions."""
    file, number, num_parts, packed, num_partitions = argument
    counts = counted_part(packed, file)
    if counts is None:
        copies = dedup.read_copies(packed, number, num_parts=num_parts, num_partitions=num_partitions)
        counts = count_part(file, copies, work=job.work, packed=packed)
    yield 0
    return counts


def pack(job: Job, argument: tuple[ShardRange, str]) -> Generator[int, None, list[dict[str, Any]]]:
    """Pack a range of shards; returns their entries for the index."""
    shards, packed = argument
    record = join(packed, "shards", shards.domain, f"{shards.first}-{shards.last}.json")
    entries: list[dict[str, Any]] = read_json(record) if storage.info(record) else []
    if entries:
        yield shards.end - shards.begin
        return entries
    written = pack_shards(shards, work=job.work, packed=packed, settings=job.packing, shard_format=job.shards)
    for entry in written:
        entries.append(entry)
        yield entry["samples"] * job.shards.seq_len
    storage.write_json(record, entries)
    return entries


def hold(
    job: Job, argument: tuple[str, tuple[SourceFile, ...], str]
) -> Generator[int, None, tuple[SplitCounts, list[dict[str, Any]]]]:
    """Pack the eval split of a domain of these parts; returns its counts and its entries for the index."""
    domain, files, packed = argument
    result = pack_eval(domain, files, work=job.work, packed=packed, settings=job.packing, shard_format=job.shards)
    yield result[0].sequences * job.shards.seq_len
    return result


def _check_same_file(file: SourceFile, info: Info) -> None:
    if storage.info(file.path) != info:
        raise InputError(
            f"'{file.path}' changed since this run began, or is not the same file on {socket.gethostname()}. Run the "
            "command again; on several machines, INPUT has to be a folder that all of them share, or an address."
        )
