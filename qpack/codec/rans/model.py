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

from qpack.codec.rans.side import CODES_MAX
from qpack.codec.rans.tables import Table, code_bits, code_table, main_table

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
        for index in _places(matrices[i], rows[i], cols[i], len(counts), width):
            index += bool(trellis[i]) * width - lowest
            counts += np.bincount(index.reshape(-1), minlength=len(counts))
    laid_out = counts.reshape(2 * classes, width)
    tables = [main_table(*histogram) for histogram in histograms(laid_out, lowest)]
    tables += [code_table(code_counts(codes)) for codes in (rows, cols)]
    return Coding(matrices, trellis, rows, cols, laid_out, lowest, tuple(tables))


def code_counts(codes: Codes) -> NDArray[np.int64]:
    """How often each class code occurs (64,)."""
    return sum((np.bincount(c, minlength=CODES_MAX) for c in codes), np.zeros(CODES_MAX, np.int64))


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


def _places(
    matrix: Matrix, rows: NDArray[np.int64], cols: NDArray[np.int64], counts: int, width: int
) -> Iterator[NDArray[np.int64]]:
    """2 * class * width + m of the elements, some rows at a time."""
    across = cols * (2 * width)
    steps = max(1, max(CHUNK_SYMBOLS, counts) // matrix.shape[1])
    for at in range(0, len(matrix), steps):
        down = rows[at : at + steps] * (2 * width)
        index = down[:, None] + across[None, :]
        index += matrix[at : at + steps]
        yield index
