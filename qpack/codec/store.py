"""Codec 0: the bytes as they are, for streams that do not compress."""

from __future__ import annotations

from qpack.codec.base import damaged


class Store:
    """No compression."""

    id = 0
    name = "store"
    requires: str | None = None

    def encode(self, data: bytes) -> bytes:
        """Return `data`."""
        return data

    def decode(self, data: bytes, *, decoded_bytes: int) -> bytes:
        """Return `data`, which must have the declared length."""
        if len(data) != decoded_bytes:
            raise damaged(self.name, f"{len(data)} bytes where {decoded_bytes} were declared")
        return data
