"""One domain of prepared data, read by index: for evaluation, reference losses and calibration."""

from __future__ import annotations

import numpy as np
import torch
from streaming import Stream
from streaming.base import distributed as dist
from streaming.base.world import World
from torch.utils.data import Dataset

from llmshearing.data.arguments import opens
from llmshearing.data.cache import DataBytes, data_bytes, fetch
from llmshearing.data.opening import process_group
from llmshearing.data.shards import ShardBounds, check_index
from llmshearing.data.tokens import TokenDecoder, check_columns
from llmshearing.errors import InputError
from llmshearing.together import together


class DomainDataset(Dataset):
    """The sequences of one domain, by index; all of it is fetched when it is opened.

    Iterating a ``StreamingDataset`` on several ranks repeats samples so that all ranks get the same number. A dataset
    with a length instead lets Composer drop the sampler's padding, so the mean is over each sequence once.

    Args:
        domain: name, for messages.
        local: MDS folder, or where to put what ``remote`` has.
        remote: where to fetch shards from. ``None``: all are in ``local``.
        seq_len: tokens per sample, checked. ``None``: as the data has it.
        vocab_size: token ids must be below it. ``None``: not checked.
        validate_hash: hash algorithm to check fetched shards with; the data must have been written with it.
        lazy: fetch a shard when a sequence of it is asked for, on this process alone, and not all when it is opened.

    Raises:
        InputError: there is no such data, or it does not fit.
    """

    def __init__(
        self,
        domain: str,
        local: str,
        *,
        remote: str | None = None,
        seq_len: int | None = None,
        vocab_size: int | None = None,
        validate_hash: str | None = None,
        lazy: bool = False,
    ) -> None:
        with together(), opens(f"domain '{domain}' in {local!r}, remote {remote!r}"):
            stream = Stream(
                local=local,
                remote=remote,
                download_retry=2,
                download_timeout=60.0,
                validate_hash=validate_hash,
                keep_zip=False,
            )
            check_index(stream)
            self._shards = stream.get_shards(World.detect(), allow_unsafe_types=False)
        self._stream, self._absent = stream, set(range(len(self._shards))) if lazy else set()
        with process_group(), together():
            if dist.get_local_rank() == 0 and not lazy:
                for shard in self._shards:
                    fetch(stream, shard)
        sizes = np.array([shard.samples for shard in self._shards], np.int64)
        if not sizes.sum():
            raise InputError(
                f"Domain '{domain}' has no sequences in '{local}'. Prepare the data again, or copy it again."
            )
        self._bounds, self._length, self._domain = ShardBounds(sizes), int(sizes.sum()), domain
        seq_len = check_columns(self._shards, domain, seq_len=seq_len, vocab_size=vocab_size)
        self._decode = TokenDecoder(seq_len=seq_len, vocab_size=vocab_size)

    @property
    def seq_len(self) -> int | None:
        """Tokens per sequence, where the index or the settings say it."""
        return self._decode.seq_len

    def stored(self) -> DataBytes:
        """What the data takes, here and in the cache."""
        return data_bytes(self._stream, self._shards, keep_zip=False)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        shard, place = self._bounds[index]
        if shard in self._absent:
            fetch(self._stream, self._shards[shard])
            self._absent.remove(shard)
        return self._decode(self._shards[shard][place], f"Sample {index} of domain '{self._domain}'")
