"""Where every byte of the file went: integers that sum exactly to its size.

A stream is shared among the tensors in it in proportion to the zero-order entropy of each one's
part, rounded by largest remainder, so a tensor's share includes its step codes. With a trellis,
parities are known and cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

from qpack.artifact import layout as lay
from qpack.artifact import pyz
from qpack.artifact.contents import Group, coded_symbols
from qpack.artifact.encode import Encoded
from qpack.codec.entropy import zero_order_bits


def ledger(encoded: Encoded, form: str) -> list[tuple[str, int]]:
    """(part, bytes): header, decoder (`pyz`), every tensor by name, files, digest.

    Files are named `file NAME`; the parts sum to `writer.file_bytes(encoded, form)`.
    """
    tensors = [0] * len(encoded.contents.tensors)
    files = [0] * len(encoded.contents.files)
    for group, segment in zip(encoded.groups, encoded.segments, strict=True):
        shares = files if group.kind == lay.FILES else tensors
        for member, share in zip(
            group.members, apportion(len(segment), member_bits(group)), strict=True
        ):
            shares[member] += share
    parts = [("header", len(encoded.header))]
    if form == "pyz":
        parts.append(("decoder", pyz.overhead_bytes()))
    parts += [(t.name, share) for t, share in zip(encoded.contents.tensors, tensors, strict=True)]
    parts += [
        (f"file {f.name}", share) for f, share in zip(encoded.contents.files, files, strict=True)
    ]
    parts.append(("digest", lay.TRAILER_BYTES))
    return parts


def member_bits(group: Group) -> list[float]:
    """Zero-order entropy (bits) of each member's part of a stream; raw parts count as bytes."""
    array = group.stream.array
    width = 1 if group.kind in (lay.RAW, lay.FILES) else array.itemsize
    symbols = array.view(np.dtype(f"<u{width}"))
    bounds = accumulate(group.sizes, initial=0)
    scaled = (bound * array.itemsize // width for bound in bounds)
    parts = [symbols[start:stop] for start, stop in pairwise(scaled)]
    if any(group.stream.trellis):
        parts = [coded_symbols(p, s) for p, s in zip(parts, group.stream.trellis, strict=True)]
    return [zero_order_bits(part) for part in parts]


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Split `total` into integers in proportion to `weights` (>= 0), by largest remainder.

    Equal shares where all weights are 0; ties go to the earlier one.
    """
    whole = sum(weights)
    if whole <= 0:
        weights, whole = [1.0] * len(weights), float(len(weights))
    exact = [total * weight / whole for weight in weights]
    shares = [int(share) for share in exact]
    order = sorted(range(len(weights)), key=lambda i: (shares[i] - exact[i], i))
    for index in order[: total - sum(shares)]:
        shares[index] += 1
    return shares
