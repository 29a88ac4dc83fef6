"""A streaming dataset whose mix of domains changes at exact places, the same for any workers, ranks and restarts.

    1  a round's plan: proportions, samples used per domain      plan.py, rounds.py
    2  place in the round -> domain, place in its stream         RoundPlan.layout, keyed by (seed, round, lane)
    3  place in the domain's stream -> sub-stream -> sample      permutation.py, keyed by (seed, domain, pass)
    4  global batch g, rank r, worker w                          rows r of every batch g = w modulo workers
    5  sample -> shard, download, cache, read                    streaming
    6  tokens column -> input_ids, labels                        tokens.py

    rows of a global batch   | rank 0 | rank 1 | rank 2 | rank 3 |    node 0: ranks 0 and 1, node 1: ranks 2 and 3
    lanes                    | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 |        each draws on sub-streams of its own
    shards of a domain       |a b c|c d e f|f g h| ...                node 0 reads the first half of a pass, or nearly

Steps 1 to 4 are pure functions of (data, seed, proportions so far), so each worker works out its own samples, and no
process ever waits for another one, except for the next round's plan. Nothing in steps 1 to 3 knows how many nodes or
ranks there are.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from streaming import Stream

from llmshearing.data.arguments import Folders, check_dataset, folder_of_each, opens
from llmshearing.data.cache import is_remote
from llmshearing.data.partial_rounds import to_plain
from llmshearing.data.permutation import SUB_STREAMS, most_sub_streams
from llmshearing.data.plan import RoundPlan
from llmshearing.data.prefetch import Prefetcher
from llmshearing.data.proportions import distribution
from llmshearing.data.resume import DataShape, digest, restore_plan, save_state
from llmshearing.data.rounds import Rounds
from llmshearing.data.shards import ShardedDataset
from llmshearing.data.start import check_order, from_shearing, unfinished_rounds
from llmshearing.data.streams import Streams
from llmshearing.data.tokens import TokenDecoder, check_columns


class DynamicStreamingDataset(ShardedDataset):
    """Endless training data in rounds of ``update_interval`` global batches, each round with its own domain mix.

    Every domain gets its proportion of all rounds so far, to within a few samples or, in rounds of many, a few times
    ``sub_streams``: what a round rounds off, later ones make up for. Which samples, and in which global batch, depends
    only on the data, the seed and the proportions so far. A domain's samples come in shuffled order, each once per
    pass. After a round someone has to say how it goes on: :class:`~llmshearing.data.callback.DynamicBatchLoading` calls
    ``rounds.update`` or, for a constant mix, ``rounds.hold``.

    By ``python -m benchmarks.streaming_speed`` on 2 CPU cores, with sequences of 2048 tokens and batches of 32: 1.6 and
    1.4 times the samples per second of a plain ``StreamingDataset`` over the same shards with 1 and 2 workers (1.07 and
    1.06 times where that leaves tokens in their stored type). A round's edge takes some 30 ms, 2% of a round of 400
    batches with nothing but data to wait for. Opening 10^9 samples in 4000 shards takes 0.2 s and 9 MB, planning a
    round of them 10 ms and 4 MB, as with 10^6 samples; ``python -m benchmarks.scale`` is of such a run on 64 nodes.

    Args:
        proportions: share of each domain in the first round, summing to 1. Its order is the order of the domains. Or
            the path of a ``shearing.json``, to go on with the proportions at which pruning ended.
        update_interval: global batches in a round.
        batch_size: samples per rank and batch, as in the DataLoader.
        local: a folder with one MDS folder per domain, named like the domain; or the folder of each domain. Where
            ``remote`` is given, the cache.
        remote: where to fetch shards from, in the same form, such as ``s3://bucket/data/train``. ``None``, also for
            single domains: all are in ``local``.
        start: samples of each domain that earlier stages used, with the same shards, ``shuffle_seed``,
            ``shuffle_block_size`` and ``sub_streams``, up to the end of a round; they come again only when a pass is
            over. Or the path of a ``shearing.json``, which knows these, is refused where they differ, and may be of a
            run that ended within a round.
        on_exhausted: ``repeat``: a domain that runs out starts another pass in another order; ``stop``: iteration ends
            before the first round that would repeat a sample.
        shuffle_seed: seed of all orders.
        shuffle_block_size: samples of a domain that are shuffled together, in whole shards. At any time a domain's
            samples come from the shards of one such block, or of one a ``sub_streams``-th of the size in each
            sub-stream.
        sub_streams: how many parts a domain's stream is made of, a power of two, so that up to as many nodes read
            parts of their own instead of each downloading nearly all shards. A domain has no more parts than shards,
            and each has 1024 samples at least. Part of the order of samples, as ``shuffle_seed`` is.
        replication: consecutive ranks that get the same samples, for groups that share them in tensor or context
            parallelism. ``None``: 1.
        seq_len: tokens per sample, checked. ``None``: as the data has it.
        vocab_size: token ids must be below it. ``None``: not checked.
        token_dtype: numpy type of tokens that are stored as plain bytes. ``None``: recognised.
        update_timeout: seconds that a worker waits for the next round's plan, if the loader is not the one of
            ``loaders.py``, which notices a missing plan at once.
        cache_limit: most bytes in the cache, as in ``StreamingDataset``, such as ``100gb``. ``None``: no limit.
        predownload: samples ahead of each worker whose shards are fetched. ``None``: eight batches.
        download_retry: attempts to fetch a shard.
        download_timeout: seconds for one attempt. A shard that another process has not fetched within the time of all
            attempts is fetched again.
        validate_hash: hash algorithm to check fetched shards with; the data must have been written with it.
        keep_zip: keep the compressed form of decompressed shards.

    Raises:
        InputError: settings that contradict each other or the data.
    """

    def __init__(
        self,
        *,
        proportions: Mapping[str, float] | str,
        update_interval: int,
        batch_size: int,
        local: Folders,
        remote: Folders = None,
        start: Mapping[str, int] | str | None = None,
        on_exhausted: str = "repeat",
        shuffle_seed: int = 9176,
        shuffle_block_size: int = 1 << 18,
        sub_streams: int = SUB_STREAMS,
        replication: int | None = None,
        seq_len: int | None = None,
        vocab_size: int | None = None,
        token_dtype: str | None = None,
        update_timeout: float = 3600.0,
        cache_limit: int | str | None = None,
        predownload: int | None = None,
        download_retry: int = 2,
        download_timeout: float = 60.0,
        validate_hash: str | None = None,
        keep_zip: bool = False,
    ) -> None:
        settings = {key: value for key, value in locals().items() if key not in ("self", "proportions", "start")}
        mix = from_shearing(proportions, "proportions") if isinstance(proportions, str) else proportions
        counts = from_shearing(start, "samples_used") if isinstance(start, str) else {} if start is None else start
        check_dataset(mix, counts, settings)
        started = [domain for domain, used in counts.items() if used]
        unfinished = unfinished_rounds(start, started) if isinstance(start, str) else []
        self.domains = tuple(mix)
        predownload = 8 * batch_size if predownload is None else predownload
        shares = distribution(list(mix.values()))
        locals_, remotes = folder_of_each(local, self.domains), folder_of_each(remote, self.domains)
        with opens(f"remote is {remote!r}"):
            streams = [Stream(local=locals_[domain], remote=remotes[domain]) for domain in self.domains]
        super().__init__(
            streams=streams,
            cache_limit=cache_limit,
            predownload=predownload,
            download_retry=download_retry,
            download_timeout=download_timeout,
            validate_hash=validate_hash,
            keep_zip=keep_zip,
            batch_size=batch_size,
            shuffle_seed=shuffle_seed,
            replication=replication,
        )
        self.update_interval = update_interval
        self.global_batch_size = batch_size * self._parallel_rank_world.num_ranks
        self.on_exhausted = on_exhausted
        self.block_size = shuffle_block_size
        self.sub_streams = sub_streams
        self._rank_batch_size = batch_size
        self._ahead = predownload
        self._labels = [torch.tensor(index) for index in range(len(self.domains))]
        self._first_samples: list[int] = self.sample_offset_per_stream.tolist()
        for index, domain in enumerate(self.domains):
            seq_len = check_columns(self.shards_of_domain(index), domain, seq_len=seq_len, vocab_size=vocab_size)
        self._decode = TokenDecoder(seq_len=seq_len, vocab_size=vocab_size, dtype=token_dtype)
        self.order = Streams(
            self.domains,
            np.split(self.samples_per_shard, self.shard_offset_per_stream[1:]),
            seed=shuffle_seed,
            block_size=shuffle_block_size,
            sub_streams=sub_streams,
            unfinished=unfinished,
        )
        fingerprint = hashlib.blake2b(self.samples_per_shard.tobytes(), digest_size=8)
        fingerprint.update(repr((self.shards_per_stream.tolist(), shuffle_block_size)).encode())
        self._shape = DataShape(
            domains=self.domains,
            fingerprint=fingerprint.hexdigest(),
            update_interval=update_interval,
            global_batch_size=self.global_batch_size,
            shuffle_seed=shuffle_seed,
            shuffle_block_size=shuffle_block_size,
            shards=tuple(self._digest_of(index) for index in range(len(self.domains))),
            first={
                "proportions": digest(shares.tolist()),
                "start": digest(sorted(counts.items()), *to_plain(unfinished)),
            },
            sub_streams=sub_streams,
            most_sub_streams=tuple(most_sub_streams(order.samples_per_shard) for order in self.order.orders),
            unfinished=to_plain(unfinished),
        )
        plan = RoundPlan(
            number=0,
            begin=0,
            size=self._shape.round_size,
            proportions=tuple(shares.tolist()),
            used=tuple(counts.get(domain, 0) for domain in self.domains),
            seed=shuffle_seed,
            batch_size=self.global_batch_size,
            sub_streams=max(self._shape.splits(sub_streams)),
        )
        if isinstance(start, str):
            check_order(start, self._shape, started)
        self.rounds = Rounds(plan, timeout=update_timeout)

    def shards_of_domain(self, index: int) -> list[Any]:
        """The shards of a domain by its number."""
        begin = int(self.shard_offset_per_stream[index])
        return self.shards[begin : begin + int(self.shards_per_stream[index])]

    def _digest_of(self, index: int) -> str:
        files = [shard.raw_data for shard in self.shards_of_domain(index)]
        sizes = self.samples_per_shard[int(self.shard_offset_per_stream[index]) :][: len(files)].tolist()
        return digest(sizes, [(file.bytes, sorted(file.hashes.items())) for file in files])

    @property
    def seq_len(self) -> int | None:
        """Tokens per sample; ``None`` where neither the settings nor the index say, until one was read."""
        return self._decode.seq_len

    def samples_used(self, num_samples: int) -> dict[str, int]:
        """Samples of each domain among all that training has consumed, earlier stages included.

        Args:
            num_samples: samples the run has trained on, such as ``state.timestamp.sample_in_epoch``.
        """
        return dict(zip(self.domains, self.rounds.at(num_samples).used_at(num_samples).tolist(), strict=True))

    def state_dict(self, num_samples: int, from_beginning: bool = True) -> dict[str, Any]:
        """Where training is, in plain types.

        Args:
            num_samples: samples the run has trained on.
            from_beginning: count ``num_samples`` from the beginning of the run, as Composer does, rather than from
                the last :meth:`load_state_dict`.

        Returns:
            See :func:`~llmshearing.data.resume.save_state`.
        """
        sample = num_samples if from_beginning else self.rounds.start + num_samples
        return save_state(self.rounds.at(sample), sample, self._shape)

    def load_state_dict(self, obj: dict[str, Any]) -> None:
        """Go on from a :meth:`state_dict`, on any number of ranks and workers.

        Raises:
            InputError: the data, the domains, the seed, the proportions or start that the run began with or, within a
                round, its sizes differ from the state's.
        """
        self.rounds.begin(restore_plan(obj, self._shape), start=obj["sample"])

    def exhausts(self, plan: RoundPlan) -> list[str]:
        """The domains of which ``plan``'s round would repeat samples."""
        over = (plan.counts > 0) & (np.asarray(plan.used, np.int64) + plan.counts > self.samples_per_stream)
        return [domain for domain, repeats in zip(self.domains, over, strict=True) if repeats]

    def __len__(self) -> int:
        # An endless dataset. A number here would end Composer's epoch, and with it the run's one iterator.
        raise TypeError("DynamicStreamingDataset is endless and has no length.")

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """This worker's samples, without end.

        Raises:
            InputError: the next round's proportions did not come.
        """
        world = self._parallel_rank_world.detect_workers()
        sample = self.rounds.start + world.worker_of_rank * self.global_batch_size
        stride = world.workers_per_rank * self.global_batch_size
        rows = world.rank * self._rank_batch_size + np.arange(self._rank_batch_size)
        prefetcher = Prefetcher(self, ahead=self._ahead) if any(map(is_remote, self.streams)) else None
        try:
            while (plan := self._plan_for(sample)) is not None:
                batches = np.arange(sample, plan.end, stride)
                places = (batches[:, None] - plan.begin + rows).reshape(-1)
                ids = self._sample_ids(plan, places)
                if prefetcher is None:
                    yield from map(self.get_item, ids.tolist())
                else:
                    # The next mix is not known yet, but it will draw on nearly the same shards as this one would.
                    then = self._sample_ids(plan.following(), places[: self._ahead])
                    yield from map(self.get_item, prefetcher.follow(ids, then))
                sample += len(batches) * stride
        finally:
            if prefetcher is not None:
                prefetcher.stop()

    def _plan_for(self, sample: int) -> RoundPlan | None:
        """The plan of the round of ``sample``, or ``None`` where iteration ends."""
        plan = self.rounds.wait_for(sample)
        return None if plan and self.on_exhausted == "stop" and self.exhausts(plan) else plan

    def _sample_ids(self, plan: RoundPlan, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The samples at ``places`` of a round, (n,)."""
        return self.order.sample_ids(plan, places)

    def get_item(self, sample_id: int, retry: int = 7, *, again: bool = True) -> dict[str, torch.Tensor]:
        """One sample: ``input_ids`` and ``labels``, int64, (seq_len,), and ``domain``, int64, ()."""
        index = bisect_right(self._first_samples, sample_id) - 1
        raw = super().get_item(sample_id, retry, again=again)
        sample = self._decode(raw, f"Sample {sample_id - self._first_samples[index]} of domain '{self.domains[index]}'")
        return {**sample, "domain": self._labels[index]}
