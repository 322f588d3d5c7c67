"""Codecs 1 and 2: LZMA2 in an xz container, and LZMA2 alone. Standard library only.

The dictionary is as large as the data needs and no larger, so the decoder's memory is bounded by
the declared size. Raw LZMA2 carries its literal and position bits (lc, lp, pb) in its own chunk
headers; a decoder needs the dictionary size alone, which it derives from `decoded_bytes`.
"""

from __future__ import annotations

import lzma
from typing import Any

from qpack.codec.base import damaged

PRESET = 9 | lzma.PRESET_EXTREME
DICT_MIN = 4096
DICT_MAX = 1 << 30
OVERHEAD_BYTES = 1 << 20
"""What liblzma needs beside the dictionary: under 200 KiB, with room."""

VARIANTS = ((3, 0, 2), (0, 0, 4), (3, 0, 0), (0, 2, 2))
"""(lc, lp, pb): xz's default; small symbols with no neighbours; text; four-byte fields."""
SAMPLE_BYTES = 1 << 17


def dict_bytes(decoded_bytes: int) -> int:
    """LZMA2 dictionary for data of this size: the next power of two, 4 KiB to 1 GiB."""
    return min(max(DICT_MIN, 1 << max(decoded_bytes - 1, 0).bit_length()), DICT_MAX)


def _filters(decoded_bytes: int, lc: int = 3, lp: int = 0, pb: int = 2) -> list[dict[str, Any]]:
    dictionary = dict_bytes(decoded_bytes)
    return [
        {
            "id": lzma.FILTER_LZMA2,
            "preset": PRESET,
            "dict_size": dictionary,
            "lc": lc,
            "lp": lp,
            "pb": pb,
        }
    ]


def _drain(decoder: lzma.LZMADecompressor, data: bytes, decoded_bytes: int, name: str) -> bytes:
    try:
        out = decoder.decompress(data, max_length=decoded_bytes)
        # The end marker may still be unread when the last byte comes out.
        if not decoder.eof and len(out) == decoded_bytes:
            out += decoder.decompress(b"", max_length=1)
    except (lzma.LZMAError, MemoryError, EOFError) as error:
        raise damaged(name, str(error) or "out of memory") from error
    if len(out) != decoded_bytes or not decoder.eof or decoder.unused_data:
        raise damaged(name, f"it does not hold exactly the {decoded_bytes} bytes declared")
    return out


class Xz:
    """xz container, no checksum inside: the artifact digests every stored byte."""

    id = 1
    name = "lzma"
    requires: str | None = None

    def encode(self, data: bytes) -> bytes:
        """One xz stream."""
        filters = _filters(len(data))
        return lzma.compress(data, format=lzma.FORMAT_XZ, check=lzma.CHECK_NONE, filters=filters)

    def decode(self, data: bytes, *, decoded_bytes: int) -> bytes:
        """Decode one xz stream whose dictionary is no larger than the data calls for."""
        limit = dict_bytes(decoded_bytes) + OVERHEAD_BYTES
        decoder = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=limit)
        return _drain(decoder, data, decoded_bytes, self.name)


class RawLzma2:
    """LZMA2 without a container, with the best of a few (lc, lp, pb) found on a sample."""

    id = 2
    name = "lzma-raw"
    requires: str | None = None

    def encode(self, data: bytes) -> bytes:
        """One raw LZMA2 stream."""
        start = max(0, (len(data) - SAMPLE_BYTES) // 2)
        sample = data[start : start + SAMPLE_BYTES]
        best = min(VARIANTS, key=lambda v: len(self._compress(sample, *v)))
        return self._compress(data, *best)

    @staticmethod
    def _compress(data: bytes, lc: int, lp: int, pb: int) -> bytes:
        return lzma.compress(data, format=lzma.FORMAT_RAW, filters=_filters(len(data), lc, lp, pb))

    def decode(self, data: bytes, *, decoded_bytes: int) -> bytes:
        """Decode one raw LZMA2 stream."""
        decoder = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=_filters(decoded_bytes))
        return _drain(decoder, data, decoded_bytes, self.name)
