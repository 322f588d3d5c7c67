"""Codec 4: Zstandard, level 22, window sized to the data, no checksum and no content size."""

from __future__ import annotations

from qpack.codec.base import damaged, need

LEVEL = 22
WINDOW_LOG_MIN, WINDOW_LOG_MAX = 10, 30
PIECE_BYTES = 64
"""Input fed at a time. A block takes at least 4 bytes and yields at most 128 KiB, so no call can
yield more than about 2 MiB before the count is checked."""


def window_log(decoded_bytes: int) -> int:
    """Window that holds data of this size whole: 1 KiB to 1 GiB."""
    return min(max(WINDOW_LOG_MIN, max(decoded_bytes - 1, 0).bit_length()), WINDOW_LOG_MAX)


class Zstd:
    """One Zstandard frame."""

    id = 4
    name = "zstd"
    requires: str | None = "zstandard"

    def encode(self, data: bytes) -> bytes:
        """One frame."""
        zstandard = need("zstandard")
        parameters = zstandard.ZstdCompressionParameters.from_level(
            LEVEL,
            source_size=len(data),
            window_log=window_log(len(data)),
            write_checksum=False,
            write_content_size=False,
        )
        return bytes(zstandard.ZstdCompressor(compression_params=parameters).compress(data))

    def decode(self, data: bytes, *, decoded_bytes: int) -> bytes:
        """Decode one frame in small pieces, counting; the frame must end the data."""
        zstandard = need("zstandard")
        window = 1 << window_log(decoded_bytes)
        pieces: list[bytes] = []
        have = 0
        try:
            decoder = zstandard.ZstdDecompressor(max_window_size=window).decompressobj()
            for start in range(0, len(data), PIECE_BYTES):
                if decoder.eof or have > decoded_bytes:
                    raise damaged(self.name, "it goes on after its end")
                piece = decoder.decompress(data[start : start + PIECE_BYTES])
                if piece:
                    pieces.append(piece)
                    have += len(piece)
        except (zstandard.ZstdError, MemoryError) as error:
            raise damaged(self.name, str(error)) from error
        if have != decoded_bytes or not decoder.eof or decoder.unused_data:
            raise damaged(self.name, f"it does not hold exactly the {decoded_bytes} bytes declared")
        return b"".join(pieces)
