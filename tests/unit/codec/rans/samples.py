"""Integers to code: with and without a trellis, of any shape and scale."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from qpack.trellis import next_states

Matrix = NDArray[np.int16]


def path(symbols: NDArray[np.int64], states: int) -> NDArray[np.int64]:
    """The integers 2 k + parity of `symbols` k (rows, cols), each column a path of the trellis."""
    if states == 0:
        return symbols
    following = next_states(states)
    state = np.zeros(symbols.shape[1], np.uint8)
    out = np.empty_like(symbols)
    for row, k in enumerate(symbols):
        out[row] = 2 * k + (state & 1)
        state = following[state, k & 1]
    return out


def gaussian(
    rng: np.random.Generator, shape: tuple[int, int], states: int, *, scale: float, spread: float
) -> Matrix:
    """Rounded normal numbers; scales of rows and columns differ by `spread` octaves each."""
    rows, cols = (2 ** rng.normal(0, spread, n) for n in shape)
    k = np.rint(rng.normal(size=shape) * scale * rows[:, None] * cols[None, :]).astype(np.int64)
    return path(np.clip(k, -8000, 8000), states).astype(np.int16)


def entropy_bits(symbols: NDArray[np.int64]) -> float:
    """Zero-order entropy of all `symbols` together."""
    _, counts = np.unique(symbols, return_counts=True)
    return float(sum(n * math.log2(len(symbols) / n) for n in counts.tolist()))
