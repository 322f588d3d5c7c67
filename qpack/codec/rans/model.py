"""What a segment is coded with: matrices as the coder sees them, counts, tables and their cost.

The parity of an integer m of a trellis is known from the path, so m itself names both its table and
its symbol k = (m - parity) / 2. So a class has two histograms of integers, one of the matrices
without a trellis and one of those with, and the second is split by parity into two tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qpack.codec.rans.schedule import num_lanes
from qpack.codec.rans.side import CODES_MAX, HEAD, Side, pack
from qpack.codec.rans.tables import Table, code_bits, code_table, main_table

LANE_BYTES, SEED = 3, 0
CHUNK_SYMBOLS = 1 << 18
Matrix = NDArray[np.signedinteger]
Histogram = tuple[int, NDArray[np.int64]]
Codes = list[NDArray[np.int64]]


@dataclass(frozen=True, slots=True, eq=False)
class Coding:
    """Matrices, the classes of their rows and columns, and the histograms and tables of these."""

    matrices: Sequence[Matrix]
    trellis: Sequence[int]
    rows: Codes
    cols: Codes
    counts: NDArray[np.int64]
    """(2 C, width): of the integers from `lowest` on; of class c without, then with a trellis"""
    lowest: int
    tables: tuple[Table, ...]
    """3 C + 2, in the order of the format"""

    @property
    def classes(self) -> int:
        """C"""
        return len(self.counts) // 2


def coding(matrices: Sequence[Matrix], trellis: Sequence[int], rows: Codes, cols: Codes) -> Coding:
    """Tables for these classes. Members without elements have no codes."""
    filled = [i for i, matrix in enumerate(matrices) if matrix.size]
    lowest = min((int(matrices[i].min()) for i in filled), default=0)
    width = max((int(matrices[i].max()) for i in filled), default=0) - lowest + 1
    classes = max((int(rows[i].max() + cols[i].max()) + 1 for i in filled), default=1)
    counts = np.zeros(2 * classes * width, np.int64)
    for i in filled:
        across = cols[i] * (2 * width) + (bool(trellis[i]) * width - lowest)
        for part in parts(matrices[i].shape, max(CHUNK_SYMBOLS, len(counts))):
            index = (rows[i][part] * (2 * width))[:, None] + across[None, :]
            index += matrices[i][part]
            counts += np.bincount(index.reshape(-1), minlength=len(counts))
    laid_out = counts.reshape(2 * classes, width)
    tables = [main_table(*histogram) for histogram in histograms(laid_out, lowest)]
    tables += [code_table(code_counts(codes)) for codes in (rows, cols)]
    return Coding(matrices, trellis, rows, cols, laid_out, lowest, tuple(tables))


def code_counts(codes: Codes) -> NDArray[np.int64]:
    """How often each class code occurs (64,)."""
    return sum((np.bincount(c, minlength=CODES_MAX) for c in codes), np.zeros(CODES_MAX, np.int64))


def segment_bytes(plan: Coding) -> int:
    """Bytes of the segment, within 0.05 % of large ones, without the coding loop.

    A state starts at 2^16 and ends anywhere below 2^32, evenly on a logarithmic scale, so one of
    the four bytes that a lane stores comes back. The side block is built, with the escapes in an
    order drawn from a fixed seed. Raises `TooLargeError` as encoding does.
    """
    escapes = np.random.default_rng(SEED).permutation(escaped_values(plan))
    side, _ = pack(Side(tuple(plan.trellis), plan.tables, escapes))
    lanes = num_lanes([matrix.shape for matrix in plan.matrices])
    return HEAD.size + len(side) + round(payload_bits(plan) / 8) + LANE_BYTES * lanes


def payload_bits(plan: Coding) -> float:
    """Bits of all coded symbols and class codes."""
    main = zip(plan.tables, histograms(plan.counts, plan.lowest), strict=False)
    bits = sum(code_bits(table, lowest, counts) for table, (lowest, counts) in main)
    for table, codes in zip(plan.tables[-2:], (plan.rows, plan.cols), strict=True):
        bits += code_bits(table, 0, code_counts(codes))
    return bits


def escaped_values(plan: Coding) -> NDArray[np.int64]:
    """The value e of each escape, in the order of tables."""
    values = [np.empty(0, np.int64)]
    main = zip(plan.tables, histograms(plan.counts, plan.lowest), strict=False)
    for table, (lowest, counts) in main:
        symbols = np.arange(lowest, lowest + len(counts))
        escaped = table.places(symbols) >= table.listed
        values.append(np.repeat(symbols[escaped] >> 1, counts[escaped]))
    return np.concatenate(values)


def histograms(counts: NDArray[np.int64], lowest: int) -> Iterator[Histogram]:
    """Lowest symbol and counts for each of the 3 C main tables: m, then k of even and of odd m."""
    for plain, trellis in counts.reshape(-1, 2, counts.shape[-1]):
        yield lowest, plain
        for parity in (0, 1):
            first = (lowest + parity) & 1  # the first place whose integer has this parity
            yield (lowest + first) >> 1, trellis[first::2]


def slots(plan: Coding) -> tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.bool_]]:
    """Frequency and start of the integers of `plan.counts`, flat, and whether they are escaped.

    Frequencies are 0 where there is no table.
    """
    classes, width = plan.classes, plan.counts.shape[1]
    m = np.arange(plan.lowest, plan.lowest + width)
    shape = (classes, 2, width)
    frequency, start = np.zeros(shape, np.uint32), np.zeros(shape, np.uint32)
    escaped = np.zeros(shape, np.bool_)
    for index in range(3 * classes):
        table = plan.tables[index]
        if not table.used:
            continue
        which, kind = divmod(index, 3)
        here = m & 1 == kind - 1 if kind else np.ones(width, np.bool_)
        symbol = m[here] >> 1 if kind else m
        place = table.places(symbol)
        starts = np.cumsum(table.frequencies) - table.frequencies
        trellis = min(kind, 1)
        frequency[which, trellis, here] = table.frequencies[place]
        start[which, trellis, here] = starts[place]
        escaped[which, trellis, here] = place >= table.listed
    return frequency.reshape(-1), start.reshape(-1), escaped.reshape(-1)


def parts(shape: tuple[int, int], symbols: int = CHUNK_SYMBOLS) -> Iterator[slice]:
    """The rows of a matrix in parts of about `symbols` elements."""
    step = max(1, symbols // shape[1])
    return (slice(at, at + step) for at in range(0, shape[0], step))
