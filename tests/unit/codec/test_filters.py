"""Filters are bijections, and each does what its name says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qpack.codec import filters

PLAIN = (filters.NONE, filters.PLANES, filters.TRANSPOSE, filters.TRANSPOSE_PLANES)


@given(
    array=hnp.arrays(
        st.sampled_from(["<i1", "<i2", "<u2", "<u4", "<u8"]),
        st.tuples(st.integers(0, 5), st.integers(0, 5)),
    ),
    filter_id=st.sampled_from(PLAIN),
)
def test_round_trip(array: np.ndarray, filter_id: int) -> None:
    flat, matrices = array.reshape(-1), (array.shape,)
    data = filters.forward(flat, filter_id, matrices)
    back = filters.inverse(data, flat.dtype, filter_id, matrices)
    assert back.dtype == flat.dtype
    assert back.tolist() == flat.tolist()


@given(array=hnp.arrays("<i2", st.integers(0, 40)))
def test_differences_round_trip(array: np.ndarray) -> None:
    data = filters.forward(array, filters.DELTA_PLANES)
    assert filters.inverse(data, array.dtype, filters.DELTA_PLANES).tolist() == array.tolist()


def test_planes_put_first_bytes_first() -> None:
    array = np.array([0x0201, 0x0403], "<u2")
    assert filters.forward(array, filters.NONE) == bytes([1, 2, 3, 4])
    assert filters.forward(array, filters.PLANES) == bytes([1, 3, 2, 4])


def test_transposition_is_of_each_matrix() -> None:
    array = np.arange(10, dtype="<i1")
    data = filters.forward(array, filters.TRANSPOSE, ((2, 3), (2, 2)))
    assert list(data) == [0, 3, 1, 4, 2, 5, 6, 8, 7, 9]


def test_transposition_comes_before_planes() -> None:
    array = np.array([1, 2, 3, 4], "<i2")
    data = filters.forward(array, filters.TRANSPOSE_PLANES, ((2, 2),))
    assert data == bytes([1, 3, 2, 4, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("values", "zigzag"),
    [([5, 4, 6], [10, 1, 4]), ([-1, -1], [1, 0]), ([32767, -32768], [65534, 2])],
)
def test_differences_wrap_and_zigzag(values: list[int], zigzag: list[int]) -> None:
    data = filters.forward(np.array(values, "<i2"), filters.DELTA_PLANES)
    planes = np.frombuffer(data, np.uint8).reshape(2, -1)
    assert (planes[0] + 256 * planes[1].astype(int)).tolist() == zigzag
