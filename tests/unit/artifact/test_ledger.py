"""Shares are integers, sum exactly, and follow entropy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpack.artifact.ledger import apportion, ledger
from qpack.tensors import Contents, QuantizedTensor
from tests.samples import encoded, quantized, varied


@given(total=st.integers(0, 10_000), weights=st.lists(st.floats(0, 1e12), min_size=1, max_size=9))
def test_shares_sum(total: int, weights: list[float]) -> None:
    shares = apportion(total, weights)
    assert sum(shares) == total
    assert min(shares) >= 0
    whole = sum(weights)
    if whole > 0:
        for share, weight in zip(shares, weights, strict=True):
            assert abs(share - total * weight / whole) <= 1 + 1e-6


@pytest.mark.parametrize(
    ("total", "weights", "shares"),
    [
        (10, [1, 1], [5, 5]),
        (10, [1, 1, 1], [4, 3, 3]),
        (7, [0, 0], [4, 3]),
        (5, [0, 1], [0, 5]),
        (0, [2, 3], [0, 0]),
        (1, [0.4, 0.6], [0, 1]),
    ],
)
def test_largest_remainder(total: int, weights: list[float], shares: list[int]) -> None:
    assert apportion(total, weights) == shares


def test_every_part_is_listed_in_order() -> None:
    contents = varied()
    names = [tensor.name for tensor in contents.tensors]
    files = [f"file {file.name}" for file in contents.files]
    assert [n for n, _ in ledger(encoded(contents), "qpk")] == ["header", *names, *files, "digest"]
    assert [n for n, _ in ledger(encoded(contents), "pyz")][:2] == ["header", "decoder"]


def test_a_richer_tensor_has_the_larger_share() -> None:
    flat = quantized("blocks.0.w", 100, 64)
    flat = QuantizedTensor(
        name=flat.name,
        shape=flat.shape,
        integers=np.zeros_like(flat.integers),
        row_codes=np.zeros_like(flat.row_codes),
    )
    contents = Contents(tensors=(flat, quantized("blocks.1.w", 100, 64)), aliases={}, metadata={})
    shares = dict(ledger(encoded(contents), "qpk"))
    assert shares["blocks.0.w"] == 0
    assert shares["blocks.1.w"] > 1000
