"""Windows of whole documents, packed: nothing is truncated, nothing is read in the wrong context.

A document of n tokens is n pairs of a token and the one after it, the next document's BOS at its
end. Full windows of T pairs are cut from it in order. What is left over, n mod T pairs, is a whole
document if n < T, else the tail of one, and those pieces share windows:

- a window holds at most one tail, in front, so that nothing is read as the continuation of what it
  does not continue; whole documents follow, each with its BOS;
- pieces are placed largest first, each where least room is left (best-fit decreasing: Ding et al.,
  "Fewer Truncations Improve Language Modeling", arXiv 2404.10830);
- room that is left in front of a tail is filled with the tokens before it, as context whose targets
  are ignored; in a window without a tail it is filled with BOS at the end, ignored likewise.

So every target of a shard counts exactly once an epoch, and every window begins with a document or
with the continuation of one whose beginning another window holds. (The loaders of the reference
systems cut windows without regard to documents: `techniques.md` 7.3.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qpack.errors import DataError

from .windows import IGNORED


class DocumentWindows:
    """Windows of T = `sequence` pairs of the documents of each shard, packed."""

    def __init__(self, shards: Sequence[NDArray[np.uint16]], sequence: int, *, bos: int) -> None:
        """Raises `DataError` when a shard has no document, that is no BOS, or no pair."""
        self._shards = [shard.view(np.ndarray) for shard in shards]
        self._sequence, self._bos = sequence, bos
        starts = [document_starts(shard, bos) for shard in self._shards]
        empty = [
            f"shard {i}: {len(shard):,} tokens"
            for i, (shard, found) in enumerate(zip(self._shards, starts, strict=True))
            if not found.size or len(shard) < 2
        ]
        if empty:
            raise DataError(
                f"no document begins in these shards: token {bos} is not in them",
                items=empty,
                hint='use windows = "shuffled", or shards with BOS before each document',
            )
        self._packs = [
            pack(found, len(shard) - 1, sequence)
            for shard, found in zip(self._shards, starts, strict=True)
        ]
        self.counts = np.array([len(first) - 1 for first, _ in self._packs], dtype=np.int64)

    def fill(self, out: NDArray[np.int32], shard: int, window: int, *, offset: int) -> None:
        """See `Windows.fill`; `offset` is not used."""
        tokens, (first, pieces) = self._shards[shard], self._packs[shard]
        rows = pieces[first[window] : first[window + 1]]
        begin, _, continues = rows[0].tolist()
        room = self._sequence - int(rows[:, 1].sum())
        context = min(room, begin) if continues else 0
        out[0, :context] = tokens[begin - context : begin]
        out[1, :context] = IGNORED
        at = context
        for start, count, _ in rows.tolist():
            out[0, at : at + count] = tokens[start : start + count]
            out[1, at : at + count] = tokens[start + 1 : start + count + 1]
            at += count
        out[0, at:] = self._bos
        out[1, at:] = IGNORED

    def place(self, shard: int, window: int, *, offset: int) -> int:
        """See `Windows.place`: the first token that has a target to predict."""
        first, pieces = self._packs[shard]
        return int(pieces[first[window], 0])


def document_starts(
    tokens: NDArray[np.uint16], bos: int, *, chunk: int = 1 << 22
) -> NDArray[np.int64]:
    """Where BOS is in `tokens`, (tokens,): (documents,) int64."""
    found = [
        np.flatnonzero(tokens[start : start + chunk] == bos) + start
        for start in range(0, len(tokens), chunk)
    ]
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


def pack(
    starts: NDArray[np.int64], num_pairs: int, sequence: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pack the documents that begin at `starts`, (documents,), of a shard of `num_pairs` pairs.

    Returns where each window's pieces begin in the list of pieces, (windows + 1,), and that list,
    (pieces, 3) int64: first pair, number of pairs, whether it continues a document. Pairs before
    the first BOS continue one of another shard.
    """
    whole, left = _cut(starts, num_pairs, sequence)
    groups = best_fit(left[:, 1], left[:, 2] > 0, sequence)
    order = np.array([piece for group in groups for piece in group], dtype=np.int64)
    sizes = np.array([1] * len(whole) + [len(group) for group in groups], dtype=np.int64)
    return np.concatenate([[0], np.cumsum(sizes)]), np.concatenate([whole, left[order]])


def _cut(
    starts: NDArray[np.int64], num_pairs: int, sequence: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Full windows of all documents, and what is left over: (pieces, 3) each, as in `pack`."""
    begin = np.union1d(starts[starts < num_pairs], [0])
    length = np.diff(begin, append=num_pairs)
    foreign = ~np.isin(begin, starts)
    full, rest = np.divmod(length, sequence)
    document = np.repeat(np.arange(len(begin)), full)
    within = np.arange(len(document)) - np.repeat(np.cumsum(full) - full, full)
    whole = np.stack(
        [
            begin[document] + within * sequence,
            np.full(len(document), sequence),
            (within > 0) | foreign[document],
        ],
        axis=1,
    )
    left = np.stack([begin + full * sequence, rest, (full > 0) | foreign], axis=1)
    return whole.astype(np.int64), left[rest > 0].astype(np.int64)


def best_fit(sizes: NDArray[np.int64], first: NDArray[np.bool_], room: int) -> list[list[int]]:
    """Indices of the pieces of `sizes`, (pieces,), at most `room` each, grouped into bins of it.

    Largest first, each into the fullest bin that has room for it; equal ones in order. A bin has at
    most one of the pieces that must come `first`, and in front.
    """
    bins: list[list[int]] = []
    free = {False: _Free(room), True: _Free(room)}  # bins without and with a piece that is first
    for piece in np.argsort(-sizes, kind="stable").tolist():
        size, is_first = int(sizes[piece]), bool(first[piece])
        kinds = (False,) if is_first else (False, True)
        left, has_first = min((free[kind].least(size), kind) for kind in kinds)
        if left > room:
            number, left, has_first = len(bins), room, False
            bins.append([])
        else:
            number = free[has_first].take(left)
        bins[number].insert(0 if is_first else len(bins[number]), piece)
        free[has_first or is_first].put(number, left - size)
    return bins


class _Free:
    """Bins by the room that is left in them."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._bins: list[list[int]] = [[] for _ in range(room + 1)]
        self._mask = 0  # bit r is set while a bin has r left, so that the least is one lowest bit

    def least(self, size: int) -> int:
        """The least room of a bin that is at least `size`; beyond all where there is none."""
        above = self._mask >> size
        return size + (above & -above).bit_length() - 1 if above else self._room + 1

    def take(self, left: int) -> int:
        """Remove a bin that has `left` left."""
        number = self._bins[left].pop()
        if not self._bins[left]:
            self._mask &= ~(1 << left)
        return number

    def put(self, number: int, left: int) -> None:
        """Add a bin that has `left` left."""
        self._bins[left].append(number)
        self._mask |= 1 << left
