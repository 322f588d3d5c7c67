"""Open an artifact as data: bounded, checked in full, never executed.

Order of checks: file size, magic, version, header length, header digest, header, all bounds,
segment digests, file digest, then decoding. No number is used before it is checked.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from qpack.artifact import layout as lay
from qpack.artifact import pyz, rules
from qpack.artifact.limits import DECODED_BYTES_MAX, HEADER_BYTES_MAX
from qpack.artifact.parse import parse_header
from qpack.artifact.values import value_problems
from qpack.codec import filters
from qpack.codec.base import ByteCodec
from qpack.codec.integers import Rans
from qpack.codec.registry import by_id
from qpack.errors import (
    CorruptError,
    InputError,
    TooLargeError,
    TruncatedError,
    UnsupportedError,
)
from qpack.tensors import Contents, EmbeddedFile, QuantizedTensor, RawTensor, StoredTensor

Source = str | PathLike[str] | bytes
PIECE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What can be said of an artifact without reading its weights."""

    form: str
    """`qpk` or `pyz`"""
    file_bytes: int
    version: tuple[int, int]
    header_bytes: int
    """prefix and stored header"""
    layout: lay.Layout
    decoder: bytes | None = None
    """source of the embedded decoder (`pyz`)"""
    start: int = 0
    """offset of the `.qpk` in the file"""
    qpk_bytes: int = 0
    crc: int | None = None
    """CRC-32 that the zip gives for the `.qpk` (`pyz`)"""

    def offsets(self) -> list[int]:
        """Where each segment starts in the file."""
        found, position = [], self.start + self.header_bytes
        for stream in self.layout.streams:
            found.append(position)
            position += stream.stored_bytes
        return found


@contextmanager
def opened(
    source: Source, *, max_decoded_bytes: int = DECODED_BYTES_MAX
) -> Iterator[tuple[BinaryIO, Header]]:
    """The open file and its checked header, for readers that go on to the segments."""
    if isinstance(source, bytes):
        with io.BytesIO(source) as memory:
            yield memory, _parse(memory, len(source), max_decoded_bytes)
        return
    try:
        file = Path(source).open("rb")  # noqa: SIM115 (closed below, outside this try)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot open {source}: {error}") from None
    with file:
        file_bytes = file.seek(0, io.SEEK_END)
        yield file, _parse(file, file_bytes, max_decoded_bytes)


def open_artifact(source: Source, *, max_decoded_bytes: int = DECODED_BYTES_MAX) -> Header:
    """Header of the `.qpk` or `.pyz` at a path, or given as bytes. Reads no segment.

    ArtifactError where it breaks the format; InputError where it cannot be opened.
    """
    with opened(source, max_decoded_bytes=max_decoded_bytes) as (_, header):
        return header


def read(source: Source, *, max_decoded_bytes: int = DECODED_BYTES_MAX) -> Contents:
    """Decode everything, after checking every digest; then check every value."""
    with opened(source, max_decoded_bytes=max_decoded_bytes) as (file, header):
        check_digests(file, header)
        return decoded(file, header)


def _parse(file: BinaryIO, file_bytes: int, max_decoded_bytes: int) -> Header:
    file.seek(0)
    magic = file.read(len(lay.MAGIC))
    if not magic.startswith(pyz.LOCAL_MAGIC):
        return _parse_qpk(file, 0, file_bytes, max_decoded_bytes)
    inside = pyz.look_inside(file, file_bytes)
    header = _parse_qpk(file, inside.offset, inside.qpk_bytes, max_decoded_bytes)
    return Header(
        form="pyz",
        file_bytes=file_bytes,
        version=header.version,
        header_bytes=header.header_bytes,
        layout=header.layout,
        decoder=inside.decoder,
        start=inside.offset,
        qpk_bytes=inside.qpk_bytes,
        crc=inside.crc,
    )


def _parse_qpk(file: BinaryIO, start: int, qpk_bytes: int, max_decoded_bytes: int) -> Header:
    file.seek(start)
    prefix = file.read(min(lay.PREFIX.size, qpk_bytes))
    if prefix[: len(lay.MAGIC)] != lay.MAGIC[: len(prefix)] or not prefix:
        raise CorruptError("not a qpack artifact: the magic bytes are missing")
    if qpk_bytes < lay.PREFIX.size + lay.TRAILER_BYTES:
        raise TruncatedError(f"artifact of {qpk_bytes} bytes ends inside its fixed fields")
    _, major, minor, stored_bytes, decoded_bytes, digest = lay.PREFIX.unpack(prefix)
    if major != lay.MAJOR:
        raise UnsupportedError(
            f"format version {major}.{minor}; this qpack reads {lay.MAJOR}.x", hint="upgrade qpack"
        )
    if max(stored_bytes, decoded_bytes) > HEADER_BYTES_MAX:
        raise TooLargeError(
            f"header of {stored_bytes} stored and {decoded_bytes} decoded bytes, "
            f"at most {HEADER_BYTES_MAX} each"
        )
    header_bytes = lay.PREFIX.size + stored_bytes
    if header_bytes + lay.TRAILER_BYTES > qpk_bytes:
        raise TruncatedError("artifact ends inside its header")
    stored = file.read(stored_bytes)
    if lay.digest64(stored) != digest:
        raise CorruptError("digest mismatch in the header: the file is damaged or altered")
    layout = parse_header(_inflate(stored, decoded_bytes), minor)
    rules.check(layout, file_bytes=qpk_bytes, max_decoded_bytes=max_decoded_bytes)
    expected = header_bytes + layout.stored_bytes + lay.TRAILER_BYTES
    if expected > qpk_bytes:
        raise TruncatedError(f"artifact has {qpk_bytes} bytes of {expected}")
    if expected < qpk_bytes:
        raise CorruptError(f"{qpk_bytes - expected} bytes after the segments belong to nothing")
    return Header(
        form="qpk",
        file_bytes=qpk_bytes,
        version=(major, minor),
        header_bytes=header_bytes,
        layout=layout,
        qpk_bytes=qpk_bytes,
    )


def _inflate(stored: bytes, decoded_bytes: int) -> bytes:
    inflate = zlib.decompressobj(-15)
    try:
        text = inflate.decompress(stored, decoded_bytes + 1)
    except zlib.error as error:
        raise CorruptError(f"header does not inflate: {error}") from None
    if len(text) != decoded_bytes or not inflate.eof or inflate.unused_data:
        raise CorruptError(f"header does not inflate to the {decoded_bytes} bytes declared")
    return text


def check_digests(file: BinaryIO, header: Header) -> str:
    """Check every segment, naming the damaged ones, and the file digest.

    Returns the SHA-256 (hex) of the `.qpk` including its trailer.
    """
    sha256 = hashlib.sha256()
    file.seek(header.start)
    head = file.read(header.header_bytes)
    sha256.update(head)
    crc = zlib.crc32(head)
    damaged = []
    for index, stream in enumerate(header.layout.streams):
        digest = hashlib.blake2b(digest_size=8)
        left = stream.stored_bytes
        while left:
            piece = file.read(min(left, PIECE_BYTES))
            if not piece:
                raise TruncatedError(f"the file ends in segment {index}")
            left -= len(piece)
            crc = zlib.crc32(piece, crc)
            digest.update(piece)
            sha256.update(piece)
        if digest.digest() != stream.digest:
            damaged.append(f"segment {index} ({stream.kind} of {members(header.layout, index)})")
    if damaged:
        raise CorruptError("digest mismatch: the file is damaged or altered", items=damaged)
    trailer = file.read(lay.TRAILER_BYTES)
    if trailer != sha256.digest():
        raise CorruptError("digest mismatch of the whole file: it is damaged or altered")
    if header.crc not in (None, zlib.crc32(trailer, crc)):
        raise CorruptError("checksum mismatch of model.qpk in the zip: it is damaged or altered")
    sha256.update(trailer)
    return sha256.hexdigest()


def members(layout: lay.Layout, index: int) -> str:
    """Names of what a stream holds, the first three of many."""
    kind = layout.streams[index].kind
    if kind == lay.FILES:
        names = [f.name for f in layout.files if f.stream == index]
    elif kind == lay.ROWS:
        names = [t.name for t in layout.tensors if t.octave]
    elif kind == lay.COLS:
        names = [t.name for t in layout.tensors if t.has_cols]
    else:
        names = [t.name for t in layout.tensors if t.stream == index]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


class _Cursor:
    """A decoded stream, handed out member by member."""

    def __init__(self, array: NDArray[np.generic], trellis: list[int]) -> None:
        self.array = array
        self.position = 0
        self._trellis = iter(trellis)

    def take(self, elements: int) -> NDArray[np.generic]:
        start = self.position
        self.position += elements
        return self.array[start : self.position]

    def trellis(self) -> int:
        """Of the next member with integers."""
        return next(self._trellis, 0)


def decoded(file: BinaryIO, header: Header) -> Contents:
    """Decode every segment, whose digests are already checked, and check every value."""
    layout = header.layout
    cursors = [
        _Cursor(*decode_stream(file, layout, index, offset))
        for index, offset in enumerate(header.offsets())
    ]
    kinds = {stream.kind: cursor for stream, cursor in zip(layout.streams, cursors, strict=True)}
    tensors = tuple(_tensor(info, layout, cursors, kinds) for info in layout.tensors)
    problems = [
        f"{tensor.name!a}: {problem}"
        for tensor in tensors
        if isinstance(tensor, QuantizedTensor)
        for problem in value_problems(tensor)
    ]
    if problems:
        raise CorruptError("values that the format does not allow", items=problems)
    return Contents(
        tensors=tensors,
        aliases=dict(layout.aliases),
        metadata=dict(layout.metadata),
        files=tuple(
            EmbeddedFile(
                name=f.name, role=f.role, data=cursors[f.stream].take(f.num_bytes).tobytes()
            )
            for f in layout.files
        ),
    )


def decode_stream(
    file: BinaryIO, layout: lay.Layout, index: int, offset: int
) -> tuple[NDArray[np.generic], list[int]]:
    """Elements of one stream, (elements,), little-endian, and states of its members' trellises.

    The stream's digest is already checked.
    """
    stream = layout.streams[index]
    dtype = np.dtype(f"<{'i' if stream.kind in _SIGNED else 'u'}{lay.WIDTHS[stream.dtype]}")
    shapes = [(t.rows, t.cols) for t in layout.tensors if t.octave and t.stream == index]
    codec = by_id(stream.codec)
    file.seek(offset)
    data = file.read(stream.stored_bytes)
    if isinstance(codec, Rans):
        matrices, trellis = codec.decode_matrices(data, shapes, dtype.newbyteorder("="))
        return np.concatenate([matrix.reshape(-1) for matrix in matrices]), trellis
    assert isinstance(codec, ByteCodec)
    plain = codec.decode(data, decoded_bytes=stream.decoded_bytes)
    return filters.inverse(plain, dtype, stream.filter, shapes), []


_SIGNED = (lay.INTEGERS, lay.ROWS, lay.COLS)


def _tensor(
    info: lay.TensorInfo, layout: lay.Layout, cursors: list[_Cursor], kinds: dict[str, _Cursor]
) -> StoredTensor:
    array = cursors[info.stream].take(info.elements)
    if not info.octave:
        dtype = layout.streams[info.stream].dtype
        return RawTensor(name=info.name, shape=info.shape, dtype=dtype, data=array.tobytes())
    native = array.dtype.newbyteorder("=")
    return QuantizedTensor(
        name=info.name,
        shape=info.shape,
        integers=array.reshape(info.rows, info.cols).astype(native, copy=False),
        row_codes=kinds[lay.ROWS].take(info.rows).astype(np.int16, copy=False),
        col_codes=(
            kinds[lay.COLS].take(info.cols).astype(np.int16, copy=False) if info.has_cols else None
        ),
        octave=info.octave,
        trellis=cursors[info.stream].trellis(),
    )
