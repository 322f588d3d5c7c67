"""What the header of an artifact says, and the bytes that say it.

    offset  bytes  content
         0      8  magic
         8      2  format version, major
        10      2  format version, minor
        12      4  stored header bytes
        16      4  decoded header bytes
        20      8  BLAKE2b-64 of the stored header
        28      .  header: raw deflate of canonical JSON
         .      .  segments, one a stream, in the header's order, with no gaps
       -32     32  SHA-256 of everything before it

All integers are little-endian. The rules that a header must keep are in `rules.py`.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from dataclasses import dataclass, field
from math import prod
from typing import Any

MAGIC = b"\x89QPK\r\n\x1a\n"
"""As PNG's: not text, and broken by every line-ending conversion and 7-bit channel."""
MAJOR, MINOR = 1, 0
PREFIX = struct.Struct("<8sHHII8s")
TRAILER_BYTES = 32

INTEGERS, ROWS, COLS, RAW, FILES = "int", "rows", "cols", "raw", "files"
"""Kinds of stream."""

WIDTHS = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
"""Bytes of each element type, by its safetensors name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamInfo:
    """One segment: elements of one type, filtered and coded."""

    kind: str
    dtype: str
    codec: int
    filter: int
    stored_bytes: int
    decoded_bytes: int
    digest: bytes
    """BLAKE2b-64 of the stored bytes"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorInfo:
    """A tensor and the stream that holds its integers or its raw bytes."""

    name: str
    shape: tuple[int, ...]
    stream: int
    lead: int = 0
    """leading dimensions of `shape` that count rows (quantized tensors)"""
    octave: int = 0
    """step codes to a doubling; 0: a raw tensor"""
    has_cols: bool = False
    """True: column codes follow in the `cols` stream"""

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def rows(self) -> int:
        """Rows of the quantized matrix."""
        return prod(self.shape[: self.lead])

    @property
    def cols(self) -> int:
        """Columns of the quantized matrix."""
        return prod(self.shape[self.lead :])


@dataclass(frozen=True, kw_only=True, slots=True)
class FileInfo:
    """An embedded file and the stream that holds it."""

    name: str
    role: str
    stream: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The decoded header. Members of a stream lie in it in the order of the header."""

    streams: tuple[StreamInfo, ...]
    tensors: tuple[TensorInfo, ...]
    aliases: dict[str, str] = field(default_factory=dict)
    files: tuple[FileInfo, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    requires: tuple[str, ...] = ()
    """features that a reader must know; version 1.0 defines none"""

    @property
    def decoded_bytes(self) -> int:
        """Decoded bytes of all streams."""
        return sum(stream.decoded_bytes for stream in self.streams)

    @property
    def stored_bytes(self) -> int:
        """Stored bytes of all streams."""
        return sum(stream.stored_bytes for stream in self.streams)


def digest64(data: bytes) -> bytes:
    """BLAKE2b with a digest of 8 bytes: names what is damaged, where SHA-256 only says that."""
    return hashlib.blake2b(data, digest_size=8).digest()


def canonical(value: Any) -> bytes:
    """The one JSON text of `value`: sorted keys, no spaces, ASCII with \\u escapes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def header_json(layout: Layout) -> bytes:
    """Canonical JSON of a layout."""
    return canonical(
        {
            "aliases": layout.aliases,
            "files": [[f.name, f.role, f.stream, f.num_bytes] for f in layout.files],
            "metadata": layout.metadata,
            "requires": list(layout.requires),
            "streams": [_stream_row(stream) for stream in layout.streams],
            "tensors": [_tensor_row(tensor) for tensor in layout.tensors],
        }
    )


def _stream_row(stream: StreamInfo) -> list[Any]:
    row: list[Any] = [stream.kind, stream.dtype, stream.codec, stream.filter]
    return [*row, stream.stored_bytes, stream.decoded_bytes, stream.digest.hex()]


def _tensor_row(tensor: TensorInfo) -> list[Any]:
    row: list[Any] = [tensor.name, list(tensor.shape), tensor.stream]
    if tensor.octave:
        row += [tensor.lead, tensor.octave, int(tensor.has_cols)]
    return row


def header_bytes(layout: Layout) -> bytes:
    """Prefix and stored header: everything before the first segment."""
    text = header_json(layout)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    stored = deflate.compress(text) + deflate.flush()
    prefix = PREFIX.pack(MAGIC, MAJOR, MINOR, len(stored), len(text), digest64(stored))
    return prefix + stored
