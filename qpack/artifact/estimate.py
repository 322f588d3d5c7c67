"""What an artifact would take, without coding its weights.

The size of the rANS stream is that of its model, step codes are deflated, and the header is built;
so the estimate is within 0.1 % of the file where integers are coded by rANS. Codecs of bytes are
taken to come near the zero-order entropy of each role.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np

from qpack.artifact import pyz
from qpack.artifact.contents import (
    Group,
    all_integers,
    coded_symbols,
    group,
    integers_by_role,
    other_groups,
)
from qpack.artifact.encode import describe
from qpack.artifact.integers import matrices
from qpack.artifact.layout import COLS, INTEGERS, ROWS, TRAILER_BYTES
from qpack.codec import filters
from qpack.codec.base import ByteCodec, Codec
from qpack.codec.entropy import zero_order_bits
from qpack.codec.integers import Rans
from qpack.codec.registry import integer_codec
from qpack.codec.select import Coded
from qpack.errors import TooLargeError
from qpack.tensors import Contents, QuantizedTensor, StoredTensor

DEFLATE_LIMIT = 4 << 20
"""Raw data up to this many bytes is also deflated: it may repeat itself."""

STEPS_OVER_DEFLATE = 0.97
"""What brotli and LZMA make of step codes, of what deflate makes of them."""

BYTES_OVER_ENTROPY = 1.01
"""What brotli makes of quantized weights, of their zero-order entropy."""


def estimate_bytes(contents: Contents, codecs: Sequence[Codec], form: str) -> int:
    """Bytes of the file of `contents` in `form`, `qpk` or `pyz`."""
    groups, coded = _integers(contents, codecs)
    for part in other_groups(contents):
        groups.append(part)
        coded.append(_coded(part_bytes(part)))
    layout, header = describe(contents, groups, coded)
    whole = len(header) + layout.stored_bytes + TRAILER_BYTES
    return whole + (pyz.overhead_bytes() if form == "pyz" else 0)


def _integers(contents: Contents, codecs: Sequence[Codec]) -> tuple[list[Group], list[Coded]]:
    roles = integers_by_role(contents)
    plain = [_coded(part_bytes(part)) for part in roles]
    coder = integer_codec(codecs)
    if coder is None or not any(part.stream.array.size for part in roles):
        return roles, plain
    whole = all_integers(contents)
    try:
        size = coder.estimate_bytes(matrices(whole.stream), whole.stream.trellis)
    except TooLargeError:  # so will be the encoding, and other codecs take over
        return roles, plain
    others = any(isinstance(codec, ByteCodec) for codec in codecs)
    if others and not any(whole.stream.trellis) and sum(len(c.data) for c in plain) < size:
        return roles, plain
    return [whole], [_coded(size, Rans.id)]


def _coded(num_bytes: int, codec: int = 0) -> Coded:
    return Coded(data=bytes(num_bytes), codec=codec, filter=filters.NONE, seconds=0.0)


def part_bytes(part: Group) -> int:
    """Bytes of one stream."""
    array = part.stream.array
    if part.kind == INTEGERS:
        return math.ceil(BYTES_OVER_ENTROPY * zero_order_bits(array) / 8)
    if part.kind in (ROWS, COLS):
        forms = [filters.forward(array, f) for f in part.stream.filters]
        return math.ceil(STEPS_OVER_DEFLATE * min(len(zlib.compress(form, 9)) for form in forms))
    planes = array.view(np.uint8).reshape(-1, array.dtype.itemsize).T
    size = math.ceil(math.fsum(zero_order_bits(plane) for plane in planes) / 8)
    small = array.nbytes <= DEFLATE_LIMIT
    return min(size, len(zlib.compress(planes.tobytes()))) if small else size


def tensor_entropy_bytes(tensor: StoredTensor) -> int:
    """About the bytes of one tensor alone, its step codes included, by zero-order entropy."""
    if not isinstance(tensor, QuantizedTensor):
        alone = Contents(tensors=(tensor,), aliases={}, metadata={})
        return sum(part_bytes(part) for part in group(alone))
    bits = zero_order_bits(coded_symbols(tensor.integers, tensor.trellis))
    bits += zero_order_bits(tensor.row_codes)
    bits += 0.0 if tensor.col_codes is None else zero_order_bits(tensor.col_codes)
    return math.ceil(bits / 8)
