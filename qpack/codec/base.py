"""What a codec is, and the contract that makes one safe to call on data that nobody vouches for.

`decode` gets the number of bytes that the container declares and has already checked against its
limits. It returns exactly that many or raises `ArtifactError`, and bounds its memory before it
allocates. Measured reasons (versions of 2026): `zstandard.decompress(max_output_size=)` ignores
its limit, `brotli`'s limit is soft by about a megabyte and its streaming decoder accepts any
truncation, and 211 bytes of brotli expand to 256 MiB.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Protocol, runtime_checkable

from qpack.errors import CorruptError, SetupError


@runtime_checkable
class Codec(Protocol):
    """One way to compress a stream: a `ByteCodec`, or `integers.Rans` for integers alone."""

    id: int
    """registered in docs/FORMAT.md: 0x00 to 0x7F; private: 0x80 to 0xFF"""
    name: str
    requires: str | None
    """package needed beyond numpy and the standard library: its name on PyPI and its module's"""


@runtime_checkable
class ByteCodec(Codec, Protocol):
    """A codec that knows nothing of what the bytes mean."""

    def encode(self, data: bytes) -> bytes:
        """Compress; the same bytes for the same data and package version."""

    def decode(self, data: bytes, *, decoded_bytes: int) -> bytes:
        """Exactly `decoded_bytes` bytes, or ArtifactError; SetupError where a package is absent."""


def damaged(codec: str, detail: str) -> CorruptError:
    """The error of every codec for data that does not decode to what was declared."""
    return CorruptError(f"{codec} stream is damaged: {detail}")


def need(package: str) -> ModuleType:
    """Import the package of a codec where it is first used; SetupError says how to get it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise SetupError(
            f"a codec needs the package {package}, which cannot be imported",
            items=[str(error)],
            hint=f"pip install {package}",
        ) from error
