"""Zero-order entropy against the formula."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qpack.codec.entropy import PIECE, zero_order_bits


@pytest.mark.parametrize(
    ("symbols", "bits"),
    [([], 0.0), ([7], 0.0), ([3, 3, 3], 0.0), ([0, 1], 2.0), ([-1, 0, 1, 2], 8.0)],
)
@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint8])
def test_small_cases(symbols: list[int], bits: float, dtype: type) -> None:
    assert zero_order_bits(np.array(symbols).astype(dtype)) == pytest.approx(bits)


def test_biased_coin() -> None:
    expected = -(30 * math.log2(0.3) + 70 * math.log2(0.7))
    assert zero_order_bits(np.array([[1] * 30 + [-1] * 70], np.int8)) == pytest.approx(expected)


def test_counts_run_over_pieces_and_strides() -> None:
    array = np.tile(np.array([1, -300], np.int16), PIECE)
    assert zero_order_bits(array) == pytest.approx(2 * PIECE)
    assert zero_order_bits(array[::2]) == 0.0
