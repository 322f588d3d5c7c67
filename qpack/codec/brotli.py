"""Codec 3: brotli, quality 11 and a 16 MiB window. The best general codec for small integers."""

from __future__ import annotations

from qpack.codec.base import damaged, need

QUALITY = 11
WINDOW_LOG = 24
PIECE_BYTES = 1 << 20
"""Output asked for at a time: the decoder's own limit is soft, by about as much again."""


class Brotli:
    """brotli >= 1.2, which can limit its output."""

    id = 3
    name = "brotli"
    requires: str | None = "brotli"

    def encode(self, data: bytes) -> bytes:
        """One brotli stream."""
        brotli = need("brotli")
        return bytes(brotli.compress(data, quality=QUALITY, lgwin=WINDOW_LOG))

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
