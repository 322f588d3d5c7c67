"""Golden files whose rANS segments are written by hand, so that no encoder's choices matter."""

from __future__ import annotations

from dataclasses import replace

from qpack.tensors import Contents, QuantizedTensor
from tests.rans import Segment, flat
from tests.samples import artifact, forge, quantized, take_apart


def plain(*tensors: QuantizedTensor, listed: int = 11, log_lanes: int = 2) -> Segment:
    """One class, and tables of the symbols around 0."""
    main = [flat(-(listed // 2), listed) for _ in range(3)]
    codes = [flat(0, 1, escapes=0)] * 2
    filled = [t.integers.shape if t.integers.size else (0, 0) for t in tensors]
    return Segment(
        matrices=[t.integers for t in tensors],
        trellis=[t.trellis for t in tensors],
        rows=[[0] * rows for rows, _ in filled],
        cols=[[0] * cols for _, cols in filled],
        tables=[*main, *codes],
        log_lanes=log_lanes,
    )


def with_classes(tensor: QuantizedTensor) -> Segment:
    """Three classes: row codes 0 and 1, column codes 0 and 1."""
    rows, cols = tensor.integers.shape
    return replace(
        plain(tensor),
        rows=[[i % 2 for i in range(rows)]],
        cols=[[j % 3 // 2 for j in range(cols)]],
        tables=[flat(-5 - c, 11 + 2 * c) for c in (0, 0, 0, 1, 1, 1, 2, 2, 2)]
        + [flat(0, 2, escapes=0)] * 2,
        classes=3,
    )


def wild(name: str, trellis: int) -> QuantizedTensor:
    """Mostly outside any table."""
    return quantized(name, 4, 5, qmax=32_767, trellis=trellis)


WIDE = quantized("x", 6, 5, qmax=9, col_codes=True)
CODED = quantized("w", 5, 7, qmax=31, trellis=8)
SIX = tuple(quantized(f"t{s}", 9, 3, qmax=31, trellis=s, seed=s) for s in (0, 4, 8, 16, 32, 64))
MEMBERS = (quantized("a", 3, 4), quantized("b", 7, 2, trellis=8), quantized("c", 0, 5), CODED)

HANDMADE: dict[str, tuple[tuple[QuantizedTensor, ...], Segment]] = {
    "rans-classes": ((WIDE,), with_classes(WIDE)),
    "rans-trellis": ((CODED,), plain(CODED, listed=21)),
    "rans-escapes": ((wild("a", 0), wild("b", 8)), plain(wild("a", 0), wild("b", 8), listed=3)),
    "rans-members": (MEMBERS, plain(*MEMBERS)),
    "rans-every-trellis": (SIX, plain(*SIX, listed=31, log_lanes=3)),
    "rans-one-lane": ((CODED, WIDE), plain(CODED, WIDE, log_lanes=0)),
    "rans-more-lanes-than-columns": ((WIDE,), plain(WIDE, log_lanes=5)),
}


def handmade(name: str) -> tuple[Contents, bytes]:
    """What a file holds, and the file."""
    tensors, segment = HANDMADE[name]
    contents = Contents(tensors=tensors, aliases={}, metadata={})
    header, segments = take_apart(artifact(contents, codec="rans"))
    segments[0] = segment.encode()
    return contents, forge(header, segments)
