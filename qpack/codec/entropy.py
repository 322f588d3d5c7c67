"""Zero-order entropy: what an ideal static coder would spend on the symbols of an array."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PIECE = 1 << 20
"""Elements counted at a time: keeps bincount's 64-bit copy inside the cache."""


def zero_order_bits(array: NDArray[np.generic]) -> float:
    """Total bits of an integer array (8 or 16 bits wide) under its own histogram."""
    flat = np.ascontiguousarray(array).reshape(-1)
    unsigned = flat.view(f"u{flat.dtype.itemsize}")
    counts = np.zeros(1 << (8 * flat.dtype.itemsize), np.int64)
    for start in range(0, flat.size, PIECE):
        counts += np.bincount(unsigned[start : start + PIECE], minlength=counts.size)
    present = counts[counts > 0].astype(np.float64)
    if present.size < 2:
        return 0.0
    return float(-(present * np.log2(present / flat.size)).sum())
