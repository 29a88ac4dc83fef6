"""The second pass: what is held out, what is left out, and the shards of all domains, by an engine's tasks."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from tqdm import tqdm

from llmshearing import storage
from llmshearing.data_prep.count_part import PartCounts, eval_path, held_out_path
from llmshearing.data_prep.dedup import count_partitions
from llmshearing.data_prep.engine import Engine
from llmshearing.data_prep.first_pass import Part, results
from llmshearing.data_prep.holdout import EvalDocuments, hold_out, read_prefixes
from llmshearing.data_prep.mds import index_bytes
from llmshearing.data_prep.output import packing_folder
from llmshearing.data_prep.pack import SplitCounts, plan_shards, warn_of_losses
from llmshearing.data_prep.tasks import Job, count, find_copies, hold, pack, sort
from llmshearing.data_prep.work import write_array, write_bytes
from llmshearing.errors import InputError
from llmshearing.fileio import read_json
from llmshearing.storage import join

#: Shards that are one task.
SHARDS_PER_RANGE = 4

Parts = Mapping[str, Sequence[Part]]


def pack_corpus(
    parts: Parts, *, dedup: bool, job: Job, engine: Engine, check: Callable[[], None]
) -> tuple[str, dict[str, dict[str, Any]]]:
    """Pack the tokenized parts of all domains.

    Args:
        parts: of each domain, in order.
        dedup: leave out exact copies of what is trained on already.
        job: what the tasks have in common.
        engine: runs them.
        check: called now and then; what it raises ends the run.

    Returns:
        the folder with ``train`` and ``eval``, and the domains' counts for the manifest.

    Raises:
        InputError: a domain is too small.
    """
    made_of = (job.packing, job.shards, dedup, [(part.file.key, part.found) for ps in parts.values() for part in ps])
    packed = packing_folder(job.work, hashlib.blake2b(repr(made_of).encode(), digest_size=8).hexdigest())
    record = join(packed, "domains.json")
    if storage.info(record) is not None:
        return packed, read_json(record)
    chosen = _hold_out(parts, job, packed)
    counts = _count(parts, dedup, job, packed, engine)
    for domain, counted in counts.items():
        _check_large_enough(domain, counted, chosen[domain], job)
    ranges = []
    for domain, members in parts.items():
        streams = [
            (part.file, found.tokens + found.documents * job.packing.extra)
            for part, found in zip(members, counts[domain], strict=True)
        ]
        ranges += plan_shards(domain, streams, job.shards, per_range=SHARDS_PER_RANGE)
    with tqdm(
        total=sum(shards.end - shards.begin for shards in ranges) + len(parts) * job.eval_tokens,
        desc="packing",
        unit=" tokens",
        unit_scale=True,
        mininterval=1,
    ) as bar:

        def show(base: int) -> Callable[[int, list[int]], None]:
            def update(tokens: int, _: list[int]) -> None:
                check()
                bar.update(base + tokens - bar.n)

            return update

        evaluations = results(
            engine, hold, [(name, tuple(part.file for part in parts[name]), packed) for name in parts], show(0)
        )
        packings = results(engine, pack, [(shards, packed) for shards in ranges], show(bar.n))
    manifest = {}
    for (domain, counted), (evaluation, eval_entries) in zip(counts.items(), evaluations, strict=True):
        mine = [entries for shards, entries in zip(ranges, packings, strict=True) if shards.domain == domain]
        train_entries = list(itertools.chain.from_iterable(mine))
        train = _train_counts(counted, job)
        for split, split_counts, entries in (("train", train, train_entries), ("eval", evaluation, eval_entries)):
            split_counts.shards = {
                raw["basename"]: raw["hashes"]["sha256"] for raw in (entry["raw_data"] for entry in entries)
            }
            write_bytes(job.work, join(packed, split, domain, "index.json"), index_bytes(entries))
        manifest[domain] = _domain_counts(counted, train, evaluation, dedup=dedup)
        warn_of_losses(domain, manifest[domain], job.packing)
    storage.write_json(record, manifest)
    return packed, manifest


def _hold_out(parts: Parts, job: Job, packed: str) -> dict[str, EvalDocuments]:
    options = {"num_tokens": job.eval_tokens, "extra": job.packing.extra}
    chosen = {}
    for domain, members in parts.items():
        found = [(part.file, part.found) for part in members]
        chosen[domain] = hold_out(
            domain,
            lambda found=found: read_prefixes(job.work, found, **options),  # type: ignore[misc]
            domain_tokens=sum(part.found.tokens for part in members),
            **options,
        )
    for domain, documents in chosen.items():
        storage.write_json(eval_path(packed, domain), asdict(documents))
    hashes = np.unique(np.concatenate([np.array(documents.hashes, "<u8") for documents in chosen.values()]))
    write_array(job.work, held_out_path(packed), hashes)
    return chosen


def _count(parts: Parts, dedup: bool, job: Job, packed: str, engine: Engine) -> dict[str, list[PartCounts]]:
    everything = [part for members in parts.values() for part in members]
    partitions = count_partitions(sum(part.found.documents for part in everything)) if dedup else 0
    if partitions:
        results(engine, sort, [(part.file, at, packed, partitions) for at, part in enumerate(everything)])
        results(engine, find_copies, [(at, len(everything), packed, partitions) for at in range(partitions)])
    arguments = [(part.file, at, len(everything), packed, partitions) for at, part in enumerate(everything)]
    found = iter(results(engine, count, arguments))
    return {domain: list(itertools.islice(found, len(members))) for domain, members in parts.items()}


def _train_counts(counts: Sequence[PartCounts], job: Job) -> SplitCounts:
    documents, tokens = (sum(getattr(part, name) for part in counts) for name in ("documents", "tokens"))
    sequences, rest = divmod(tokens + documents * job.packing.extra, job.packing.seq_len)
    return SplitCounts(documents, tokens, sequences, rest)


def _check_large_enough(domain: str, counts: Sequence[PartCounts], chosen: EvalDocuments, job: Job) -> None:
    train = _train_counts(counts, job)
    if train.sequences == 0:
        settings, copies = job.packing, sum(part.copied_documents for part in counts)
        without = f", without {copies} copies of other documents" if copies else ""
        raise InputError(
            f"Domain '{domain}' is too small: holding out {settings.eval_sequences} eval sequences of "
            f"{settings.seq_len} tokens takes {len(chosen.hashes)} documents and leaves "
            f"{train.documents}{without}, too few for one training sequence. Lower --eval-sequences or --seq-len, or "
            "add documents (a document is held out whole)."
        )


def _domain_counts(
    counts: Sequence[PartCounts], train: SplitCounts, evaluation: SplitCounts, *, dedup: bool
) -> dict[str, Any]:
    total = {name: sum(getattr(part, name) for part in counts) for name in PartCounts.__dataclass_fields__}
    copies = {"documents": total["copied_documents"], "tokens": total["copied_tokens"]}
    return {
        "documents": total["documents"] + total["held_documents"] + total["copied_documents"],
        "tokens": total["tokens"] + total["held_tokens"] + total["copied_tokens"],
        "dropped_tail_tokens": train.dropped_tail_tokens + evaluation.dropped_tail_tokens,
        "duplicates_of_eval": {
            "documents": total["held_documents"] - evaluation.documents,
            "tokens": total["held_tokens"] - evaluation.tokens,
        },
        **({"duplicates_of_train": copies} if dedup else {}),
        "train": asdict(train),
        "eval": asdict(evaluation),
    }
