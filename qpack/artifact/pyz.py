"""The self-decoding form: a zip application around a `.qpk`.

A `.pyz` holds exactly two members: `__main__.py`, the decoder, deflated, and `model.qpk`, stored.
Every other byte of the zip is fixed, so a file is accepted only if rebuilding the zip around its
two members gives the same bytes: nothing can be hidden in front, between, behind or in a field.
"""

from __future__ import annotations

import functools
import hashlib
import json
import struct
import zlib
from dataclasses import dataclass
from importlib.resources import files
from typing import BinaryIO

from qpack.artifact.limits import DECODER_BYTES_MAX, ZIP_BYTES_MAX
from qpack.errors import CorruptError, TooLargeError, TruncatedError

MAIN, MODEL = b"__main__.py", b"model.qpk"
LOCAL_MAGIC = b"PK\x03\x04"
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_VERSION, _UNIX = 20, 3 << 8
_TIME, _DATE = 0, 0x21  # 1980-01-01 00:00, the zero of the format
_MODE = 0o100644 << 16
_STORED, _DEFLATED = 0, 8
_FUTURE = b"from __future__ import annotations\n"
_UNRANS = b"from qpack.artifact.unrans import inflate, rans"


@dataclass(frozen=True, slots=True)
class _Member:
    name: bytes
    method: int
    crc: int
    stored_bytes: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Inside:
    """Where the parts of a `.pyz` are."""

    decoder: bytes
    """source of `__main__.py`"""
    offset: int
    """of the `.qpk`"""
    qpk_bytes: int
    crc: int
    """CRC-32 that the zip gives for the `.qpk`"""


@functools.cache
def decoder_source() -> bytes:
    """The decoder as one file: decoder.py, with unrans.py in the place of its import."""
    folder = files("qpack.artifact")
    whole = folder.joinpath("decoder.py").read_bytes()
    part = folder.joinpath("unrans.py").read_bytes().partition(_FUTURE)[2].strip()
    return whole.replace(_UNRANS, part)


@functools.cache
def released_decoders() -> dict[str, str]:
    """SHA-256 of each released decoder -> version of qpack."""
    listed: dict[str, str] = json.loads(
        files("qpack.artifact").joinpath("decoders.json").read_text("utf-8")
    )
    return listed


def decoder_status(source: bytes) -> str:
    """`unmodified (qpack x.y.z)` or `unknown, do not run`."""
    version = released_decoders().get(hashlib.sha256(source).hexdigest())
    return f"unmodified (qpack {version})" if version else "unknown, do not run"


@functools.cache
def _deflated_decoder() -> bytes:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    return deflate.compress(decoder_source()) + deflate.flush()


def overhead_bytes() -> int:
    """Bytes of a `.pyz` beside its `.qpk`."""
    before, after = _around(_main(decoder_source(), len(_deflated_decoder())), _model(0, 0))
    return len(before) + len(_deflated_decoder()) + len(after)


def wrap(qpk: bytes) -> bytes:
    """The `.pyz` around a `.qpk`."""
    code = _deflated_decoder()
    head, tail = _around(_main(decoder_source(), len(code)), _model(zlib.crc32(qpk), len(qpk)))
    split = _LOCAL.size + len(MAIN)
    whole = b"".join((head[:split], code, head[split:], qpk, tail))
    if len(whole) > ZIP_BYTES_MAX:
        raise TooLargeError(
            f"a .pyz of {len(whole)} bytes is over the zip format's {ZIP_BYTES_MAX}",
            hint="write a .qpk",
        )
    return whole


def look_inside(file: BinaryIO, file_bytes: int) -> Inside:
    """Find the `.qpk` of a `.pyz` without reading or running it; ArtifactError if it is odd."""
    file.seek(0)
    main, code = _read_main(file)
    model_header = _exactly(file, _LOCAL.size + len(MODEL))
    crc, size = struct.unpack_from("<2I", model_header, 14)
    head, tail = _around(main, _model(crc, size))
    split = _LOCAL.size + len(MAIN)
    offset = len(head) + len(code)
    if model_header != head[split:]:
        raise CorruptError("the second member of the zip is not a stored model.qpk")
    if file_bytes < offset + size + len(tail):
        raise TruncatedError("the zip ends before its members do")
    file.seek(offset + size)
    if file_bytes != offset + size + len(tail) or file.read() != tail:
        raise CorruptError("the zip holds more than a decoder and a model")
    source = _inflate(code, main.num_bytes)
    if zlib.crc32(source) != main.crc:
        raise CorruptError("the decoder in the zip is damaged")
    return Inside(decoder=source, offset=offset, qpk_bytes=size, crc=crc)


def _read_main(file: BinaryIO) -> tuple[_Member, bytes]:
    header = _exactly(file, _LOCAL.size + len(MAIN))
    crc, stored_bytes, num_bytes = struct.unpack_from("<3I", header, 14)
    main = _Member(MAIN, _DEFLATED, crc, stored_bytes, num_bytes)
    if header != _local(main):
        raise CorruptError("the first member of the zip is not a deflated __main__.py")
    if max(stored_bytes, num_bytes) > DECODER_BYTES_MAX:
        raise TooLargeError(f"the decoder takes {num_bytes} bytes, at most {DECODER_BYTES_MAX}")
    return main, _exactly(file, stored_bytes)


def _exactly(file: BinaryIO, num_bytes: int) -> bytes:
    data = file.read(num_bytes)
    if len(data) != num_bytes:
        raise TruncatedError("the zip ends before its members do")
    return data


def _inflate(code: bytes, num_bytes: int) -> bytes:
    inflate = zlib.decompressobj(-15)
    try:
        source = inflate.decompress(code, num_bytes + 1)
    except zlib.error as error:
        raise CorruptError(f"the decoder in the zip is damaged: {error}") from None
    if len(source) != num_bytes or not inflate.eof or inflate.unused_data:
        raise CorruptError("the decoder in the zip is damaged")
    return source


def _main(source: bytes, stored_bytes: int) -> _Member:
    return _Member(MAIN, _DEFLATED, zlib.crc32(source), stored_bytes, len(source))


def _model(crc: int, num_bytes: int) -> _Member:
    return _Member(MODEL, _STORED, crc, num_bytes, num_bytes)


def _fields(member: _Member) -> tuple[int, ...]:
    """The fields that local and central headers share."""
    sizes = (member.crc, member.stored_bytes, member.num_bytes)
    return (_VERSION, 0, member.method, _TIME, _DATE, *sizes, len(member.name), 0)


def _local(member: _Member) -> bytes:
    return _LOCAL.pack(LOCAL_MAGIC, *_fields(member)) + member.name


def _around(main: _Member, model: _Member) -> tuple[bytes, bytes]:
    """Both local headers, and all that follows the model."""
    local = _local(main) + _local(model)
    second = _LOCAL.size + len(MAIN) + main.stored_bytes
    central = b"".join(
        _CENTRAL.pack(b"PK\x01\x02", _UNIX | _VERSION, *_fields(m), 0, 0, 0, _MODE, offset) + m.name
        for m, offset in ((main, 0), (model, second))
    )
    start = second + _LOCAL.size + len(MODEL) + model.stored_bytes
    end = _END.pack(b"PK\x05\x06", 0, 0, 2, 2, len(central), start & 0xFFFFFFFF, 0)
    return local, central + end
