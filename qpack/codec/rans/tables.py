"""Frequency tables: what a class of symbols is coded with, as integers that sum to 2^14.

A table lists the symbols `lowest`, `lowest + 1`, ... and, if it is a main table, two escapes that
stand for even and for odd symbols outside it. All frequencies together are 2^14, so a symbol of
frequency f costs 14 - log2 f bits. The integers are rounded from the counts such that no unit moved
from one symbol to another makes the code shorter; which symbols a table lists is decided by cost,
as every frequency 1 that is hardly ever used takes room from all others.

Decoding looks a 14-bit slot up: `decode_arrays` lays all tables of a stream end to end.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

Values = NDArray[np.signedinteger]
SCALE_BITS = 14
SCALE = 1 << SCALE_BITS
LISTED_MAX = 8192
"""Most symbols that the encoder lists in a table; the format has no such limit."""
CELL_BITS, EMPTY_CELL_BITS, ESCAPE_BITS = 10.0, 2.0, 10.0
"""What the encoder takes a listed symbol, a listed one that never occurs and an escape to cost."""


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Frequencies of the symbols `lowest`, `lowest + 1`, ..., then of the escapes, if any."""

    lowest: int
    frequencies: NDArray[np.int64]
    """(listed + escapes,); empty: the table is not used"""
    escapes: int
    """2 of a main table (even, odd), 0 of a table of class codes"""

    @property
    def used(self) -> bool:
        """Whether any symbol is coded with it."""
        return len(self.frequencies) > 0

    @property
    def listed(self) -> int:
        """Symbols that are not escaped."""
        return max(len(self.frequencies) - self.escapes, 0)

    def places(self, symbols: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the frequencies of `symbols` are, or those of the escapes that stand for them."""
        place = symbols - self.lowest
        outside = (place < 0) | (place >= self.listed)
        return np.where(outside, self.listed + (symbols & 1), place)


NO_MAIN_TABLE, NO_CODE_TABLE = (Table(0, np.empty(0, np.int64), escapes) for escapes in (2, 0))


def main_table(lowest: int, counts: NDArray[np.int64]) -> Table:
    """The table for symbols that occur `counts` times, the first of them `lowest`; with escapes."""
    if not counts.any():
        return NO_MAIN_TABLE
    first, last = _window(counts)
    listed = counts[first : last + 1]
    outside = counts.copy()
    outside[first : last + 1] = 0
    odd = (np.arange(len(counts)) + lowest) & 1
    escapes = [int(outside[odd == parity].sum()) for parity in (0, 1)]
    return Table(lowest + first, integer_frequencies(np.append(listed, escapes)), 2)


def code_table(counts: NDArray[np.int64]) -> Table:
    """The table for class codes that occur `counts` (64,) times; without escapes."""
    occurring = np.flatnonzero(counts)
    if len(occurring) == 0:
        return NO_CODE_TABLE
    first, last = int(occurring[0]), int(occurring[-1])
    return Table(first, integer_frequencies(counts[first : last + 1]), 0)


def integer_frequencies(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Integers that sum to 2^14, at least 1 wherever `counts` is not 0, with the shortest code.

    The code length is a sum of convex functions of the frequencies, so from a start below the
    optimum the next unit always goes to where it saves most. At most 2^14 counts may be other than
    0.
    """
    used = np.flatnonzero(counts)
    c = counts[used].astype(np.float64)
    f = _start(c)
    gain = [(-w * np.log2(1 + 1 / x), i) for i, (w, x) in enumerate(zip(c, f, strict=True))]
    heapq.heapify(gain)
    for _ in range(SCALE - int(f.sum())):
        i = gain[0][1]
        f[i] += 1
        heapq.heapreplace(gain, (-c[i] * np.log2(1 + 1 / f[i]), i))
    result = np.zeros(len(counts), np.int64)
    result[used] = f
    return result


def _start(c: NDArray[np.float64]) -> NDArray[np.int64]:
    """One less than the proportional shares of what those that get 1 leave; at least 1."""
    rare = np.zeros(len(c), np.bool_)
    while True:
        share = c * ((SCALE - rare.sum()) / max(c[~rare].sum(), 1))
        more = (share < 1) & ~rare
        if not more.any():
            return np.where(rare, 1, np.maximum(1, np.floor(share) - 1)).astype(np.int64)
        rare |= more


def code_bits(table: Table, lowest: int, counts: NDArray[np.int64]) -> float:
    """Bits of the coded symbols that occur `counts` times, the first of them `lowest`.

    Escapes of a main table are in it, their values in the side block are not.
    """
    if not table.used:
        return 0.0
    symbol = np.arange(lowest, lowest + len(counts))[counts > 0]
    frequencies = table.frequencies[table.places(symbol)]
    return float((counts[counts > 0] * (SCALE_BITS - np.log2(frequencies))).sum())


def _window(counts: NDArray[np.int64]) -> tuple[int, int]:
    """First and last symbol to list: the cheapest of those windows that hold all counts above t."""
    places = np.flatnonzero(counts)
    found = counts[places]
    best, choice, threshold = np.inf, None, 0
    while threshold < found.max():
        frequent = np.flatnonzero(found > threshold)
        first, last = int(frequent[0]), int(frequent[-1])
        span = int(places[last] - places[first]) + 1
        if span <= LISTED_MAX:
            cost = _window_bits(found, first, last, span)
            if cost < best:
                best, choice = cost, (int(places[first]), int(places[last]))
        threshold += 1 + threshold // 4
    return choice or _middle(counts)


def _middle(counts: NDArray[np.int64]) -> tuple[int, int]:
    """The listed symbols around the median, where no window is small enough."""
    median = int(np.searchsorted(np.cumsum(counts), counts.sum() // 2 + 1))
    begin = max(median - LISTED_MAX // 2, 0)
    found = begin + np.flatnonzero(counts[begin : begin + LISTED_MAX])
    return int(found[0]), int(found[-1])


def _window_bits(found: NDArray[np.int64], first: int, last: int, span: int) -> float:
    """Estimated cost of listing a window of `span` symbols and escaping the rest.

    `found` are the counts of the symbols that occur, `first` to `last` are in the window. A share
    p of the slots costs -log2 p bits; none is below one slot.
    """
    listed, total = found[first : last + 1], int(found.sum())
    escaped = total - int(listed.sum())
    coded = np.append(listed, escaped) if escaped else listed
    share = np.maximum(coded / total, 1 / SCALE)
    code = -float((coded * np.log2(share / share.sum())).sum())
    cells = CELL_BITS * len(listed) + EMPTY_CELL_BITS * (span - len(listed))
    return code + cells + (ESCAPE_BITS + 1) * escaped


def decode_arrays(tables: Sequence[Table], dtype: DTypeLike) -> tuple[NDArray[np.uint32], Values]:
    """What each slot of each table stands for, at [table << 14 | slot]: its entry and its value.

    An entry is `frequency << 15 | (slot - start) << 1 | branch bit`. A value is the integer m, or
    the class code, in `dtype`; the least of `dtype`, which is no integer of the format, stands for
    an escape and for a table that is not used. Entries of the latter are 0, so that what comes of
    them stays in bounds and is found afterwards. Tables are in the order of the format: three of
    each class, then the two of class codes.
    """
    mark = np.iinfo(dtype).min
    entries = np.zeros(len(tables) << SCALE_BITS, np.uint32)
    values = np.full(len(tables) << SCALE_BITS, mark, dtype)
    for index, table in enumerate(tables):
        if not table.used:
            continue
        f = table.frequencies
        kind = index % 3 if table.escapes else 0
        symbols = np.arange(table.lowest, table.lowest + len(f))
        meaning = 2 * symbols + kind - 1 if kind else symbols.copy()
        if table.escapes:
            symbols[-2:] = 0, 1
            meaning[-2:] = mark
        bias = np.arange(SCALE) - np.repeat(np.cumsum(f) - f, f)
        part = slice(index << SCALE_BITS, (index + 1) << SCALE_BITS)
        entries[part] = np.repeat(f << 15 | symbols & 1, f) | bias << 1
        values[part] = np.repeat(meaning, f)
    return entries, values
