"""Codec 3: brotli with a 16 MiB window. The best general codec for small integers.

Quality 11 is for text. On quantized weights 10 often comes out as small and is faster, so short
data is encoded with both and long data as a sample of it says.
"""

from __future__ import annotations

from qpack.codec.base import damaged, need

QUALITIES = (10, 11)
WINDOW_LOG = 24
SHORT_BYTES = 1 << 20
SAMPLE_BYTES = 1 << 17
WORTHWHILE = 0.9995
"""What the sample must shrink to at quality 11, of its size at 10, to be worth the time."""
PIECE_BYTES = 1 << 20
"""Output asked for at a time: the decoder's own limit is soft, by about as much again."""


class Brotli:
    """brotli >= 1.2, which can limit its output."""

    id = 3
    name = "brotli"
    requires: str | None = "brotli"

    def encode(self, data: bytes) -> bytes:
        """One brotli stream."""
        if len(data) <= SHORT_BYTES:
            return min((self._compress(data, quality) for quality in QUALITIES), key=len)
        start = (len(data) - SAMPLE_BYTES) // 2
        sample = data[start : start + SAMPLE_BYTES]
        fast, thorough = (len(self._compress(sample, quality)) for quality in QUALITIES)
        return self._compress(data, QUALITIES[thorough < WORTHWHILE * fast])

    @staticmethod
    def _compress(data: bytes, quality: int) -> bytes:
        brotli = need("brotli")
        return bytes(brotli.compress(data, quality=quality, lgwin=WINDOW_LOG))

    def decode(self, data: bytes, *, decoded_bytes: int) -> bytes:
        """Decode piece by piece, counting, and insist that the stream ends where it should."""
        brotli = need("brotli")
        decoder = brotli.Decompressor()
        pieces: list[bytes] = []
        have = 0
        try:
            piece = decoder.process(data, output_buffer_limit=PIECE_BYTES)
            while piece and have <= decoded_bytes:
                pieces.append(piece)
                have += len(piece)
                piece = (
                    b""
                    if decoder.is_finished()
                    else decoder.process(b"", output_buffer_limit=PIECE_BYTES)
                )
        except (brotli.error, MemoryError) as error:
            raise damaged(self.name, str(error)) from error
        if have != decoded_bytes or not decoder.is_finished():
            raise damaged(self.name, f"it does not hold exactly the {decoded_bytes} bytes declared")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
