"""The compressed file, `.qpz`: a header, the code of the tokens, a residual, a digest.

    offset  bytes  content
         0      8  magic
         8      2  format version
        10      4  stored header bytes
        14      .  header: raw deflate of JSON, the fields of `Header`
         .      .  the code of the tokens (`coding.py`), `stream_bytes`
         .      .  the residual (`residual.py`) under the codec that the header names
       -32     32  SHA-256 of everything before it

Integers are little-endian. Every length is checked before it is used, and the digest before
anything is decoded. The header says what must be at hand to decode: the model and the tokenizer by
their files' SHA-256, the predictor by its settings, the arithmetic by its fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from qpack.artifact.limits import EXPANSION_MAX
from qpack.errors import CorruptError, TooLargeError, TruncatedError, UnsupportedError
from qpack.eval.coder import Setup

MAGIC = b"\x89QPZ\r\n\x1a\n"
"""As an artifact's: not text, and broken by every line-ending conversion."""
VERSION = 1
PREFIX = struct.Struct("<8sHI")
TRAILER_BYTES = 32
HEADER_BYTES_MAX = 1 << 16
"""Of the header, stored and decoded, each."""
TEXT_BYTES_MAX = 1 << 30
"""Of an original: enough for enwik9, and what a file of a few bytes can ask for."""
TOKENS_PER_BYTE_MAX, RESIDUAL_PER_BYTE_MAX = 64, 4
"""For each byte of the original: no tokenizer needs as many, nor so many edits."""
SPARE = 1_024
"""The same for an empty file."""
FREE_BYTES = 1 << 24
"""Of a residual as decoded, whatever its size; a longer one is bounded by `EXPANSION_MAX`."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=TEXT_BYTES_MAX * TOKENS_PER_BYTE_MAX)]
WORD_MAX = 512
Word = Annotated[str, Field(max_length=WORD_MAX)]


class Header(BaseModel):
    """What a compressed file says of itself."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    model: Sha256
    """of the model's file"""
    model_name: Word
    tokenizer: Sha256
    """of the tokenizer's file"""
    predictor: Setup
    fingerprint: dict[Word, Word]
    """`fingerprint.fingerprint` where it was made"""
    first: Count
    """the token before the first one: context"""
    tokens: Count
    """tokens that are coded"""
    stream_bytes: Count
    """of their code"""
    residual_codec: Word
    residual_bytes: Count
    """as stored"""
    residual_decoded_bytes: Count
    text_bytes: Annotated[int, Field(ge=0, le=TEXT_BYTES_MAX)]
    """of the original"""
    text_sha256: Sha256

    @model_validator(mode="after")
    def _check_sizes(self) -> Header:
        for what, number, per_byte in (
            ("tokens", self.tokens, TOKENS_PER_BYTE_MAX),
            ("bytes of a residual", self.residual_decoded_bytes, RESIDUAL_PER_BYTE_MAX),
        ):
            if number > (most := per_byte * self.text_bytes + SPARE):
                raise ValueError(f"no text of {self.text_bytes:,} bytes has over {most:,} {what}")
        if not may_expand(self.residual_bytes, self.residual_decoded_bytes):
            raise ValueError(f"a residual expands by more than {EXPANSION_MAX:,}")
        return self

    @model_validator(mode="after")
    def _check_words(self) -> Header:
        """Messages show them: they must not move the cursor, nor begin a line."""
        if not all(word.isprintable() for word in _words(self.model_dump())):
            raise ValueError("a name or value has characters that cannot be printed")
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class Compressed:
    """A compressed file as data."""

    header: Header
    stream: bytes
    residual: bytes
    """as stored"""

    def render(self) -> bytes:
        """The whole file; the same for the same contents."""
        fields = self.header.model_dump(mode="json")
        text = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")
        deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
        stored = deflate.compress(text) + deflate.flush()
        prefix = PREFIX.pack(MAGIC, VERSION, len(stored))
        body = b"".join((prefix, stored, self.stream, self.residual))
        return body + hashlib.sha256(body).digest()


def may_expand(stored_bytes: int, decoded_bytes: int) -> bool:
    """Whether a residual may: a file of a few bytes must not ask for much memory."""
    return decoded_bytes <= max(FREE_BYTES, EXPANSION_MAX * stored_bytes)


def parse(data: bytes) -> Compressed:
    """The contents of the compressed file `data`, checked; nothing is decoded yet.

    Raises `CorruptError`, `TruncatedError`, `UnsupportedError` or `TooLargeError`.
    """
    if data[: len(MAGIC)] != MAGIC[: len(data)] or not data:
        raise CorruptError("not a compressed file of qpack: the magic bytes are missing")
    if len(data) < PREFIX.size + TRAILER_BYTES:
        raise TruncatedError(f"a compressed file of {len(data)} bytes ends in its fixed fields")
    _, version, stored_bytes = PREFIX.unpack_from(data)
    if version != VERSION:
        raise UnsupportedError(
            f"compressed file of version {version}; this qpack reads {VERSION}",
            hint="use the version of qpack that made it",
        )
    if stored_bytes > HEADER_BYTES_MAX:
        raise TooLargeError(f"header of {stored_bytes:,} bytes, at most {HEADER_BYTES_MAX:,}")
    start = PREFIX.size + stored_bytes
    if start + TRAILER_BYTES > len(data):
        raise TruncatedError("the compressed file ends inside its header")
    header = _header(data[PREFIX.size : start])
    middle = start + header.stream_bytes
    end = middle + header.residual_bytes
    if end + TRAILER_BYTES > len(data):
        missing = end + TRAILER_BYTES - len(data)
        raise TruncatedError(f"the compressed file is cut: {missing:,} of its bytes are missing")
    if end + TRAILER_BYTES < len(data):
        more = len(data) - end - TRAILER_BYTES
        raise CorruptError(f"the compressed file has {more:,} bytes too many")
    if hashlib.sha256(data[:end]).digest() != data[end:]:
        raise CorruptError("digest mismatch: the compressed file is damaged or altered")
    return Compressed(header=header, stream=data[start:middle], residual=data[middle:end])


def _words(value: Any) -> Iterator[str]:
    """All strings in plain values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from _words(name)
            yield from _words(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _words(part)


def _header(stored: bytes) -> Header:
    inflate = zlib.decompressobj(-15)
    try:
        text = inflate.decompress(stored, HEADER_BYTES_MAX + 1)
    except zlib.error as error:
        raise CorruptError(f"the header does not inflate: {error}") from None
    if len(text) > HEADER_BYTES_MAX or not inflate.eof or inflate.unused_data:
        raise CorruptError("the header does not inflate to what it should be")
    try:
        return Header.model_validate_json(text)
    except ValidationError as error:
        items = [
            ": ".join((".".join(map(str, problem["loc"])) or "header", problem["msg"]))
            for problem in error.errors()
        ]
        raise CorruptError("the header is not one of a compressed file", items=items) from None
