"""Row and column codes: the scale class that each symbol of a matrix is coded with. Encoder only.

The scale of symbol (r, j) is modelled as 2^(a_r + b_j), and its class is row code plus column code,
each in steps of one unit of octaves. a_r and b_j are fitted in turns to mean squares, each relative
to what the other says. A class that is wrong by d octaves costs a Gaussian symbol

    d + (4^-d - 1) / (2 ln 2) bits, about ln 2 d^2,

and less where nearly all symbols are 0, as these say little about their scale. A code costs bits
too, so each is the one that is cheapest in total, given how often every code is used
(entropy-constrained quantization: Chou, Lookabaugh and Gray 1989). Where scales vary too little to
pay for codes, all codes become equal, and equal codes cost nothing.

All matrices share one set of classes, as their tables cost bytes. Where there are few symbols,
coarser units and a single class are tried too, and what takes the fewest bytes is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qpack.codec.rans.model import Codes, Coding, Matrix, coding, parts, segment_bytes
from qpack.codec.rans.side import CLASSES_MAX

UNIT, COARSER = 1 / 4, (1 / 2, 1.0)
"""Octaves of a code, unless the scales span too many of them; 0.03 % is left to 1/6."""
FEW_SYMBOLS = 1 << 22
"""Up to here the tables of many classes can cost more than they save."""
TURNS, ROUNDS, REUSES = 2, 2, 4
"""Fits of a and b; of codes of rows and of columns; renewals of what codes cost."""
FLOOR = 1 / 64
"""Mean square that is added to each row and column: below it nearly all symbols are 0, and classes
for them would save next to nothing."""
OUTLIERS = 0.002
"""Share of rows and columns at either end whose scales may be beyond all classes."""
Floats = NDArray[np.floating]


def choose(matrices: Sequence[Matrix], trellis: Sequence[int]) -> Coding:
    """What matrices (rows, cols) are coded with. Raises `TooLargeError`."""
    filled = [i for i, matrix in enumerate(matrices) if matrix.size]
    members = [_Member(matrices[i], 0.25 if trellis[i] else 1.0) for i in filled]
    few = sum(member.matrix.size for member in members) <= FEW_SYMBOLS
    units = (UNIT, *COARSER, None) if few and members else (UNIT,)
    found = [_coding(matrices, trellis, members, unit) for unit in units]
    return min(found, key=segment_bytes) if few else found[0]


def _coding(
    matrices: Sequence[Matrix], trellis: Sequence[int], members: list[_Member], unit: float | None
) -> Coding:
    """Tables for codes in steps of `unit` octaves; None for a single class."""
    rows, cols = ([np.zeros(0, np.int64) for _ in matrices] for _ in range(2))
    filled = [i for i, matrix in enumerate(matrices) if matrix.size]
    for i, down, across in zip(filled, *_codes(members, unit), strict=True):
        rows[i], cols[i] = down, across
    return coding(matrices, trellis, rows, cols)


class _Member:
    """A matrix with elements, and the scales of its symbols, in octaves."""

    def __init__(self, matrix: Matrix, factor: float) -> None:
        """`factor` turns squares of the integers into those of the coded symbols.

        `weights` are symbols by row and by column, less where they are nearly all 0. The median of
        the columns' scales is 0.
        """
        self.matrix, self.factor = matrix, factor
        self.scales: list[Floats] = [np.zeros(n) for n in matrix.shape]
        plain = [self.fitted(axis, self.scales[1 - axis]) for axis in (0, 1)]
        self.weights = [
            matrix.shape[1 - axis] * np.minimum(1, 2 * 4 ** plain[axis]) for axis in (0, 1)
        ]
        self.scales[0] = plain[0]
        for _ in range(TURNS):
            for axis in (1, 0):
                self.scales[axis] = self.fitted(axis, self.scales[1 - axis])
        middle = np.median(self.scales[1])
        self.scales = [self.scales[0] + middle, self.scales[1] - middle]

    def fitted(self, axis: int, other: Floats) -> Floats:
        """Scales of the rows (axis 0) or columns, given those of the `other` axis.

        The square of a symbol of mean square v varies by about v (1 + 2 v): rare ones are counts,
        large ones are Gaussian. Their ratios to the `other` axis are averaged accordingly. einsum
        and not a matrix product, as its sums do not depend on the number of threads.
        """
        ratio = np.exp2(2 * other)
        weight = 1 / (1 + 2 * ratio * 4 ** np.median(self.scales[axis]))
        weight32 = weight.astype(np.float32)
        total = np.zeros(self.matrix.shape[axis])
        for part in parts(self.matrix.shape):
            square = self.matrix[part].astype(np.float32)
            square *= square
            if axis == 0:
                total[part] = np.einsum("rc,c->r", square, weight32)
            else:
                total += np.einsum("r,rc->c", weight32[part], square)
        mean = total * (self.factor / (weight * ratio).sum()) + FLOOR / np.median(ratio)
        return np.asarray(0.5 * np.log2(mean))


@dataclass(frozen=True, slots=True)
class _Grid:
    """What codes there are on an axis: code i stands for a scale of `lowest + i * unit` octaves."""

    lowest: float
    unit: float
    codes: int

    def nearest(self, scales: Floats, weights: Floats) -> NDArray[np.int64]:
        """The cheapest code of each of `scales`, its own bits included."""
        d = self.lowest + self.unit * np.arange(self.codes) - scales[:, None]
        bits = weights[:, None] * (d + (np.exp2(-2 * d) - 1) / (2 * math.log(2)))
        codes: NDArray[np.int64] = bits.argmin(1)
        for _ in range(REUSES):
            codes = (bits + _prices(codes, self.codes)).argmin(1)
        return codes


def _prices(codes: NDArray[np.int64], number: int) -> Floats:
    """Bits (number,) of each code where they are used like `codes`; finite for unused ones."""
    counts = np.bincount(codes, minlength=number) + 0.05
    return np.asarray(np.log2(counts.sum() / counts))


def _codes(members: list[_Member], unit: float | None) -> list[Codes]:
    """Codes of the rows and of the columns of members."""
    if unit is None or not members:
        return [[np.zeros(m.matrix.shape[axis], np.int64) for m in members] for axis in (0, 1)]
    grids = _grids([np.concatenate([m.scales[axis] for m in members]) for axis in (0, 1)], unit)
    weights = [np.concatenate([m.weights[axis] for m in members]) for axis in (0, 1)]
    scales = [m.scales[1] for m in members]
    codes: list[Codes] = [[], []]
    for turn in range(2 * ROUNDS + 1):
        axis = (turn + 1) % 2
        found = grids[axis].nearest(np.concatenate(scales), weights[axis])
        codes[axis] = np.split(found, np.cumsum([len(s) for s in scales])[:-1])
        known = [grids[axis].lowest + grids[axis].unit * c for c in codes[axis]]
        scales = [m.fitted(1 - axis, other) for m, other in zip(members, known, strict=True)]
    return [[c - min(int(c.min()) for c in of_axis) for c in of_axis] for of_axis in codes]


def _grids(scales: list[Floats], unit: float) -> list[_Grid]:
    """Grids of rows and columns over their scales, such that there are not too many classes."""
    lows, highs = zip(*(np.quantile(s, [OUTLIERS, 1 - OUTLIERS]) for s in scales), strict=True)
    spans = [high - low for low, high in zip(lows, highs, strict=True)]
    unit = max(unit, sum(spans) / (CLASSES_MAX - 2))
    return [
        _Grid(float(low), unit, 1 + math.floor(span / unit + 0.5))
        for low, span in zip(lows, spans, strict=True)
    ]
