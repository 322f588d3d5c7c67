"""Codec 5: all integers of an artifact as one rANS stream, conditioned on scales and trellises.

The only codec that is given matrices, not bytes: it needs their shapes, and uses what a trellis
says of the parity of every integer. `qpack.codec.rans` has the method.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qpack.codec import rans
from qpack.codec.base import damaged

Matrices = Sequence[NDArray[np.signedinteger]]
Shapes = Sequence[tuple[int, int]]

HEAD = struct.Struct("<BBII")
"""log2 of the lanes, classes, stored and decoded bytes of the side block"""


class Rans:
    """Interleaved rANS; numpy alone."""

    id = 5
    name = "rans"
    requires: str | None = None

    def encode_matrices(self, matrices: Matrices, trellis: Sequence[int]) -> bytes:
        """One segment; the same bytes for the same integers.

        Raises `TooLargeError` for integers whose tables or steps are over the format's limits.
        """
        return rans.encode(matrices, trellis)

    def estimate_bytes(self, matrices: Matrices, trellis: Sequence[int]) -> int:
        """Bytes that `encode_matrices` would give, without the coding."""
        return rans.estimate_bytes(matrices, trellis)

    def decode_matrices(
        self, data: bytes, shapes: Shapes, dtype: np.dtype[np.signedinteger]
    ) -> tuple[list[NDArray[np.signedinteger]], list[int]]:
        """Matrices of `shapes` in `dtype` and the states of their trellises, or `CorruptError`."""
        return rans.decode(data, shapes, dtype)


def trellises(segment: bytes, members: int) -> list[int]:
    """States of the trellis of each member, 0 for none, read without decoding any integer.

    `segment` may end with its side block. Raises `CorruptError`.
    """
    try:
        stored_bytes = HEAD.unpack_from(segment)[2]
        side = zlib.decompressobj(-15).decompress(
            segment[HEAD.size : HEAD.size + stored_bytes], max(members, 1)
        )
    except (struct.error, zlib.error) as error:
        raise damaged(Rans.name, str(error)) from None
    if len(side) != members or max(side, default=0) > 6:
        raise damaged(Rans.name, "it does not name the trellis of every member")
    return [1 << log if log else 0 for log in side]
