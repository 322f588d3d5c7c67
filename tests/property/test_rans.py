"""Whatever integers there are come back from a rANS segment, and a damaged one is rejected."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qpack.codec.rans import decode, encode, estimate_bytes
from qpack.errors import CorruptError
from qpack.trellis import STATES, obeys
from tests.unit.codec.rans.samples import path

EXAMPLES = 40
SIZES = st.sampled_from([0, 1, 2, 3, 8, 33])
STYLES = st.sampled_from(["constant", "extreme", "sparse", "normal", "uniform"])


def symbols(rng: np.random.Generator, style: str, shape: tuple[int, int], largest: int) -> Any:
    """Symbols up to +-`largest`."""
    if style == "constant":
        return np.full(shape, rng.integers(-largest, largest + 1))
    if style == "extreme":
        return rng.choice([-largest, 0, largest], shape)
    if style == "sparse":
        return rng.integers(-largest, largest + 1, shape) * (rng.random(shape) < 0.1)
    if style == "normal":
        return np.rint(rng.normal(size=shape) * 2).clip(-largest, largest).astype(np.int64)
    return rng.integers(-largest, largest + 1, shape)


@st.composite
def members(draw: Any) -> tuple[list[NDArray[Any]], list[int], Any]:
    """Up to four matrices of one dtype, and their trellises."""
    dtype, largest = draw(st.sampled_from([(np.int8, 127), (np.int16, 32767)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    matrices, trellis = [], []
    for _ in range(draw(st.integers(0, 4))):
        states = draw(st.sampled_from([0, *STATES]))
        bound = (largest - 1) // 2 if states else largest
        k = symbols(rng, draw(STYLES), (draw(SIZES), draw(SIZES)), bound)
        matrices.append(path(k, states).astype(dtype))
        trellis.append(states)
    return matrices, trellis, dtype


@given(members())
@settings(deadline=None, max_examples=EXAMPLES)
def test_round_trip(drawn: Any) -> None:
    matrices, trellis, dtype = drawn
    data = encode(matrices, trellis)
    assert encode(matrices, trellis) == data
    decoded, found = decode(data, [matrix.shape for matrix in matrices], dtype)
    assert found == trellis
    for before, after in zip(matrices, decoded, strict=True):
        assert after.dtype == dtype
        assert np.array_equal(before, after)
    # Values of escapes are deflated in the file: of those an estimate is a guess.
    # Of so small segments an estimate is a rough one: escapes deflate in another order.
    assert len(data) // 2 <= estimate_bytes(matrices, trellis) <= 2 * len(data) + 16


@given(members(), st.data())
@settings(deadline=None, max_examples=EXAMPLES)
def test_damage_is_found_or_harmless(drawn: Any, data: Any) -> None:
    """A changed byte gives integers that obey their trellises, or `CorruptError`."""
    matrices, trellis, dtype = drawn
    segment = bytearray(encode(matrices, trellis))
    where = data.draw(st.integers(0, len(segment) - 1))
    segment[where] ^= data.draw(st.integers(1, 255))
    try:
        decoded, found = decode(bytes(segment), [matrix.shape for matrix in matrices], dtype)
    except CorruptError:
        return
    for matrix, states in zip(decoded, found, strict=True):
        assert obeys(matrix, states)
        assert np.abs(matrix.astype(np.int64)).max(initial=0) <= np.iinfo(dtype).max
