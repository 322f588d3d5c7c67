"""Reversible rearrangements of typed arrays that make a general codec's work easier.

    0 none            little-endian, as it is
    1 planes          all first bytes, then all second bytes, ...      elements of 2, 4 or 8 bytes
    2 transpose       each (rows, cols) matrix of the stream column by column
    3 transpose+planes                                                 elements of 2 bytes
    4 delta+planes    e[i] - e[i-1] mod 2^16, zigzag, then planes      elements of 2 bytes

Zigzag maps 0, -1, 1, -2, ... to 0, 1, 2, 3, ..., so small steps up and down leave the high byte 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

NONE, PLANES, TRANSPOSE, TRANSPOSE_PLANES, DELTA_PLANES = range(5)
NAMES = ("none", "planes", "transpose", "transpose+planes", "delta+planes")

Matrices = Sequence[tuple[int, int]]
"""(rows, cols) of each member of a stream, in order"""


def forward(array: NDArray[np.generic], filter_id: int, matrices: Matrices = ()) -> bytes:
    """Bytes of the 1-D little-endian `array` under a filter."""
    if filter_id in (TRANSPOSE, TRANSPOSE_PLANES):
        array = _transpose(array, matrices)
    if filter_id == DELTA_PLANES:
        array = _zigzag(np.diff(array.astype("<i2", copy=False), prepend=np.int16(0)))
    if filter_id in (PLANES, TRANSPOSE_PLANES, DELTA_PLANES):
        return _planes(array)
    return array.tobytes()


def inverse(
    data: bytes, dtype: np.dtype[np.generic], filter_id: int, matrices: Matrices = ()
) -> NDArray[np.generic]:
    """The array that `forward` was given; `data` holds whole elements. May be read-only."""
    if filter_id in (PLANES, TRANSPOSE_PLANES, DELTA_PLANES):
        width = dtype.itemsize
        planes = np.frombuffer(data, np.uint8).reshape(width, -1)
        array = np.ascontiguousarray(planes.T).reshape(-1).view(dtype)
    else:
        array = np.frombuffer(data, dtype)
    if filter_id == DELTA_PLANES:
        array = _unzigzag(array).cumsum(dtype="<i2")
    if filter_id in (TRANSPOSE, TRANSPOSE_PLANES):
        array = _transpose(array, ((cols, rows) for rows, cols in matrices))
    return array


def _planes(array: NDArray[np.generic]) -> bytes:
    return array.view(np.uint8).reshape(-1, array.dtype.itemsize).T.tobytes()


def _transpose(
    array: NDArray[np.generic], matrices: Iterable[tuple[int, int]]
) -> NDArray[np.generic]:
    out = np.empty_like(array)
    start = 0
    for rows, cols in matrices:
        stop = start + rows * cols
        out[start:stop] = array[start:stop].reshape(rows, cols).T.reshape(-1)
        start = stop
    return out


def _zigzag(delta: NDArray[np.int16]) -> NDArray[np.generic]:
    return ((delta << 1) ^ (delta >> 15)).astype("<i2")


def _unzigzag(code: NDArray[np.generic]) -> NDArray[np.int16]:
    half = (code.view("<u2") >> 1).astype(np.int16)
    sign: NDArray[np.int16] = -(code.view(np.int16) & np.int16(1))
    return half ^ sign
