"""Shuffled orders that are computed where they are needed instead of being stored.

    a domain's endless stream:  pass 0 | pass 1 | ...        every pass holds each sample once
    one pass:                   its shards in a keyed order, end to end, cut into k sub-streams of equal length;
                                place p belongs to the one that the bits of p modulo k name in reverse
    one sub-stream:             blocks of whole shards, begun at another part of a block than its neighbours
    one block:                  its samples in a keyed order

:func:`permute` gives any element of a keyed permutation of ``range(n)`` without listing the others, so a slice of the
stream costs time and memory by its own length and by the number of shards, never by the number of samples. Whoever
reads in order and takes only every k-th place touches the shards of one block at a time; whoever takes every place
touches k blocks, each a k-th of the size. Reversed bits put every second place into one half of the pass, every fourth
into one quarter and so on, so that this holds for each power of two up to k: see ``plan.py`` for who takes which.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Of a domain, unless a recipe says otherwise.
SUB_STREAMS = 16
_FEISTEL_ROUNDS = 10  # fewer show in the statistics of domains of a handful of samples
_LEAST_SAMPLES = 1024  # of a sub-stream; a domain of less than two of these is downloaded by every node in no time
_KEPT_PASSES = 2  # a slice that crosses the end of a pass needs two


def derive_key(*parts: int | str) -> int:
    """A 64-bit key from ``parts``, the same on every machine and in every process."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def permute(
    indices: NDArray[np.int64], n: ArrayLike, key: ArrayLike, which: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Map ``indices`` through the keyed permutation of ``range(n)``.

    A Feistel network over the smallest power of two (from 16) that holds ``n``; what falls outside ``range(n)`` is sent
    through again until it falls inside (cycle walking, Black and Rogaway 2002, section 3).

    Args:
        indices: any subset of ``range(n)``, any shape.
        n: how many elements the permutation has; below 2^53. Of several permutations (permutations,).
        key: which permutation, see :func:`derive_key`. Of several (permutations,).
        which: of several permutations the number of each index's, in the shape of ``indices``.

    Returns:
        The images, in the shape of ``indices``.
    """
    sizes = np.atleast_1d(np.asarray(n, np.int64))
    bits = np.frexp((sizes - 1).astype(np.float64))[1]  # the binary digits of a whole number
    right_bits, left_bits = (np.maximum(2, half >> 1).astype(np.uint64) for half in (bits + 1, bits))
    turns = np.arange(_FEISTEL_ROUNDS, dtype=np.uint64)
    keys = _mix(np.atleast_1d(np.asarray(key, np.uint64)) + turns[:, None])  # (turns, permutations)
    values = indices.astype(np.uint64).reshape(-1)
    outside = np.arange(len(values))
    while len(outside):
        of = slice(None) if which is None else which.reshape(-1)[outside]
        values[outside] = _feistel(values[outside], left_bits[of], right_bits[of], keys[:, of])
        outside = outside[values[outside] >= sizes[of].astype(np.uint64)]
    return values.astype(np.int64).reshape(indices.shape)


def _feistel(
    values: NDArray[np.uint64],
    left_bits: NDArray[np.uint64],
    right_bits: NDArray[np.uint64],
    keys: NDArray[np.uint64],
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


def reversed_bits(count: int) -> NDArray[np.int64]:
    """Each number below ``count``, a power of two, with its binary digits in reverse, (count,)."""
    numbers = np.zeros(1, np.int64)
    while len(numbers) < count:
        numbers = np.concatenate([2 * numbers, 2 * numbers + 1])
    return numbers


def most_sub_streams(samples_per_shard: NDArray[np.int64]) -> int:
    """The largest power of two of sub-streams that each have a shard, and samples enough to be worth a cut."""
    least = min(int(np.count_nonzero(samples_per_shard)), int(samples_per_shard.sum()) // _LEAST_SAMPLES)
    return 1 << max(1, least).bit_length() - 1


@dataclass(frozen=True)
class _Pass:
    """The order of one pass: O(shards) memory."""

    number: int
    shards: NDArray[np.int64]  # (shards,) shard at each place of the order
    bounds: NDArray[np.int64]  # (shards + 1,) samples before each place
    blocks: NDArray[np.int64]  # (blocks + 1,) samples before each block


@dataclass(frozen=True)
class _Slice:
    """Places of one pass, and where its blocks have them."""

    order: _Pass
    chosen: NDArray[np.bool_] | slice  # which of the positions asked for
    begins: NDArray[np.int64]  # (n,) samples of the pass before the block of each
    offsets: NDArray[np.int64]  # (n,) place within the block, before it is shuffled
    blocks: NDArray[np.int64]  # (blocks,) the distinct ones
    which: NDArray[np.int64]  # (n,) which of them


class DomainOrder:
    """The endless shuffled stream of one domain's samples.

    Args:
        samples_per_shard: samples in each shard, (shards,).
        key: which order, see :func:`derive_key`.
        block_size: how many samples the blocks of all sub-streams hold together, each to within a shard. Larger blocks
            mix better; smaller ones touch fewer shards at a time.
        sub_streams: how many there are, a power of two; fewer where :func:`most_sub_streams` allows no more.
    """

    def __init__(
        self,
        samples_per_shard: Sequence[int] | NDArray[np.int64],
        *,
        key: int,
        block_size: int,
        sub_streams: int = 1,
    ) -> None:
        self.samples_per_shard = np.asarray(samples_per_shard, np.int64)
        self.num_samples = int(self.samples_per_shard.sum())
        self.sub_streams = min(sub_streams, most_sub_streams(self.samples_per_shard))
        self._first_sample = np.cumsum(self.samples_per_shard) - self.samples_per_shard
        self.key = key
        self._block_size = max(1, block_size // self.sub_streams)
        self._stream_of = reversed_bits(self.sub_streams)  # (sub-streams,) by place modulo their number; an involution
        shorter, longer = divmod(self.num_samples, self.sub_streams)
        self._lengths = shorter + (self._stream_of < longer)  # (sub-streams,) samples of each
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._staggers = self._block_size * np.arange(self.sub_streams) // self.sub_streams % self._lengths
        self._passes: OrderedDict[int, _Pass] = OrderedDict()

    def sample_ids(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The samples at ``positions`` of the stream, in any order.

        Args:
            positions: places in the endless stream, (n,); pass ``k`` covers the ``k``-th ``num_samples`` of them.

        Returns:
            Sample ids within the domain, (n,), in the order of its shards on disk.
        """
        return sample_ids([(self, positions)])[0]

    def shards_of_sub_stream(self, number: int, residue: int, begin: int, end: int) -> NDArray[np.bool_]:
        """The shards of the blocks in which a sub-stream is between two places of a pass, (shards,).

        Args:
            number: of the pass.
            residue: of the sub-stream's places modulo sub-streams.
            begin: first place, within the pass.
            end: the place behind the last one.
        """
        order, stream = self._pass(number), int(self._stream_of[residue])
        first, last = (max(0, -((residue - place) // self.sub_streams)) for place in (begin, end))
        found = np.zeros(len(order.shards), bool)
        if first >= last:
            return found
        length, start = int(self._lengths[stream]), int(self._starts[stream])
        first, last = (turn + int(self._staggers[stream]) for turn in (first, last))
        wrapped = [(first, min(last, length)), (max(0, first - length), last - length)]
        for low, high in [(low, high) for low, high in wrapped if low < high]:
            block = int(np.searchsorted(order.blocks, start + low, side="right")) - 1
            behind = int(np.searchsorted(order.blocks, start + high))
            place = int(np.searchsorted(order.bounds, order.blocks[block], side="right")) - 1
            found[order.shards[place : int(np.searchsorted(order.bounds, order.blocks[behind]))]] = True
        return found & (self.samples_per_shard > 0)

    def _slices(self, positions: NDArray[np.int64]) -> list[_Slice]:
        """The positions by pass."""
        passes, places = np.divmod(positions, self.num_samples)
        first, last = (int(passes.min()), int(passes.max())) if len(passes) else (0, -1)
        if first == last:
            return [self._slice(first, places, slice(None))]
        chosen = [(number, passes == number) for number in np.unique(passes).tolist()]
        return [self._slice(number, places[each], each) for number, each in chosen]

    def _slice(self, number: int, places: NDArray[np.int64], chosen: NDArray[np.bool_] | slice) -> _Slice:
        order = self._pass(number)
        turns, residues = np.divmod(places, self.sub_streams)
        streams = self._stream_of[residues]
        at = self._starts[streams] + (turns + self._staggers[streams]) % self._lengths[streams]
        blocks, which = np.unique(np.searchsorted(order.blocks, at, side="right") - 1, return_inverse=True)
        begins = order.blocks[blocks][which]
        return _Slice(order, chosen, begins, at - begins, blocks, which)

    def _ids(self, order: _Pass, at: NDArray[np.int64]) -> NDArray[np.int64]:
        """The samples at places of a pass as its shards lie end to end, (n,)."""
        places = np.searchsorted(order.bounds, at, side="right") - 1
        return self._first_sample[order.shards[places]] + at - order.bounds[places]

    def _pass(self, number: int) -> _Pass:
        if number not in self._passes:
            num_shards = len(self.samples_per_shard)
            shards = permute(np.arange(num_shards), num_shards, derive_key(self.key, "shards", number))
            bounds = np.concatenate([[0], np.cumsum(self.samples_per_shard[shards])])
            edges = np.union1d(bounds[:-1], self._starts)
            edges = edges[edges < self.num_samples]
            streams = np.searchsorted(self._starts, edges, side="right") - 1
            blocks = (edges - self._starts[streams]) // self._block_size
            begins = edges[(np.diff(streams, prepend=-1) > 0) | (np.diff(blocks, prepend=-1) > 0)]
            self._passes[number] = _Pass(number, shards, bounds, np.append(begins, self.num_samples))
            if len(self._passes) > _KEPT_PASSES:
                self._passes.popitem(last=False)
        return self._passes[number]


def sample_ids(asked: Sequence[tuple[DomainOrder, NDArray[np.int64]]]) -> list[NDArray[np.int64]]:
    """What :meth:`DomainOrder.sample_ids` gives for each of several orders, in the time of few.

    Args:
        asked: orders, each with positions (n,).

    Returns:
        Sample ids within each domain, (n,) each.
    """
    results = [np.empty(len(positions), np.int64) for _, positions in asked]
    slices = [(index, found) for index, (order, places) in enumerate(asked) for found in order._slices(places)]
    if not slices:
        return results
    keys = [
        derive_key(asked[index][0].key, "samples", found.order.number, block)
        for index, found in slices
        for block in found.blocks.tolist()
    ]
    sizes = np.concatenate([np.diff(found.order.blocks)[found.blocks] for _, found in slices])
    firsts = np.cumsum([0] + [len(found.blocks) for _, found in slices])
    which = np.concatenate([found.which + first for (_, found), first in zip(slices, firsts[:-1], strict=True)])
    shuffled = permute(np.concatenate([found.offsets for _, found in slices]), sizes, keys, which)
    ends = np.cumsum([len(found.offsets) for _, found in slices])
    for (index, found), part in zip(slices, np.split(shuffled, ends[:-1]), strict=True):
        results[index][found.chosen] = asked[index][0]._ids(found.order, found.begins + part)
    return results
