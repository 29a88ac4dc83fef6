"""Shuffled orders that are computed where they are needed instead of being stored.

    a domain's endless stream:  pass 0 | pass 1 | ...        every pass holds each sample once
    one pass:                   its shards in a keyed order, cut into blocks of whole shards
    one block:                  its samples in a keyed order

:func:`permute` gives any element of a keyed permutation of ``range(n)`` without listing the others, so a slice of the
stream costs time and memory by its own length and by the number of shards, never by the number of samples. Reading in
order touches the shards of one block at a time.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_FEISTEL_ROUNDS = 10  # fewer show in the statistics of domains of a handful of samples
_KEPT_PASSES = 2  # a slice that crosses the end of a pass needs two


def derive_key(*parts: int | str) -> int:
    """A 64-bit key from ``parts``, the same on every machine and in every process."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def permute(indices: NDArray[np.int64], n: int, key: int) -> NDArray[np.int64]:
    """Map ``indices`` through the keyed permutation of ``range(n)``.

    A Feistel network over the smallest power of two (from 16) that holds ``n``; what falls outside ``range(n)`` is sent
    through again until it falls inside (cycle walking, Black and Rogaway 2002, section 3).

    Args:
        indices: any subset of ``range(n)``, any shape.
        n: how many elements the permutation has.
        key: which permutation, see :func:`derive_key`.

    Returns:
        The images, in the shape of ``indices``.
    """
    right_bits = max(2, (n - 1).bit_length() + 1 >> 1)
    left_bits = max(2, (n - 1).bit_length() >> 1)
    keys = _mix(np.uint64(key) + np.arange(_FEISTEL_ROUNDS, dtype=np.uint64))
    values = indices.astype(np.uint64).reshape(-1)
    outside = np.arange(len(values))
    while len(outside):
        values[outside] = _feistel(values[outside], np.uint64(left_bits), np.uint64(right_bits), keys)
        outside = outside[values[outside] >= n]
    return values.astype(np.int64).reshape(indices.shape)


def _feistel(
    values: NDArray[np.uint64], left_bits: np.uint64, right_bits: np.uint64, keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """A bijection of ``range(2 ** (left_bits + right_bits))``: each half is XORed with a hash of the other in turn."""
    left, right = values >> right_bits, values & ((np.uint64(1) << right_bits) - np.uint64(1))
    for turn, key in enumerate(keys):
        # The high bits of the product are the well-mixed ones.
        if turn % 2:
            right ^= _mix(left + key) >> (np.uint64(64) - right_bits)
        else:
            left ^= _mix(right + key) >> (np.uint64(64) - left_bits)
    return (left << right_bits) | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64 (Steele, Lea and Flood 2014): every input bit reaches every output bit."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@dataclass(frozen=True)
class _Pass:
    """The order of one pass: O(shards) memory."""

    shards: NDArray[np.int64]  # (shards,) shard at each place of the order
    bounds: NDArray[np.int64]  # (shards + 1,) samples before each place
    blocks: NDArray[np.int64]  # (blocks + 1,) samples before each block


class DomainOrder:
    """The endless shuffled stream of one domain's samples.

    Args:
        samples_per_shard: samples in each shard, (shards,).
        key: which order, see :func:`derive_key`.
        block_size: how many samples a block holds, to within a shard. Larger blocks mix better; smaller ones touch
            fewer shards at a time.
    """

    def __init__(self, samples_per_shard: Sequence[int] | NDArray[np.int64], *, key: int, block_size: int) -> None:
        self.samples_per_shard = np.asarray(samples_per_shard, np.int64)
        self.num_samples = int(self.samples_per_shard.sum())
        self._first_sample = np.cumsum(self.samples_per_shard) - self.samples_per_shard
        self.key = key
        self._block_size = block_size
        self._passes: OrderedDict[int, _Pass] = OrderedDict()

    def sample_ids(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The samples at ``positions`` of the stream, in any order.

        Args:
            positions: places in the endless stream, (n,); pass ``k`` covers the ``k``-th ``num_samples`` of them.

        Returns:
            Sample ids within the domain, (n,), in the order of its shards on disk.
        """
        ids = np.empty(len(positions), np.int64)
        pass_of, places = np.divmod(positions, self.num_samples)
        for number in np.unique(pass_of).tolist():
            chosen = pass_of == number
            ids[chosen] = self._in_pass(number, places[chosen])
        return ids

    def _in_pass(self, number: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        order = self._pass(number)
        block_of = np.searchsorted(order.blocks, places, side="right") - 1
        shuffled = np.empty_like(places)
        for block in np.unique(block_of).tolist():
            chosen = block_of == block
            begin, size = int(order.blocks[block]), int(order.blocks[block + 1] - order.blocks[block])
            key = derive_key(self.key, "samples", number, block)
            shuffled[chosen] = begin + permute(places[chosen] - begin, size, key)
        at = np.searchsorted(order.bounds, shuffled, side="right") - 1
        return self._first_sample[order.shards[at]] + shuffled - order.bounds[at]

    def _pass(self, number: int) -> _Pass:
        if number not in self._passes:
            num_shards = len(self.samples_per_shard)
            shards = permute(np.arange(num_shards), num_shards, derive_key(self.key, "shards", number))
            bounds = np.concatenate([[0], np.cumsum(self.samples_per_shard[shards])])
            starts = bounds[:-1][np.diff(bounds[:-1] // self._block_size, prepend=-1) > 0]
            self._passes[number] = _Pass(shards, bounds, np.append(starts, bounds[-1]))
            if len(self._passes) > _KEPT_PASSES:
                self._passes.popitem(last=False)
        return self._passes[number]
