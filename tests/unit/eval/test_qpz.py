"""A compressed file is accepted whole or not at all."""

from __future__ import annotations

import hashlib
import json
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpack.errors import (
    ArtifactError,
    CorruptError,
    TooLargeError,
    TruncatedError,
    UnsupportedError,
)
from qpack.eval.qpz import PREFIX, Compressed, Header, parse

FIELDS: dict[str, Any] = {
    "model": "a" * 64,
    "model_name": "tiny",
    "tokenizer": "b" * 64,
    "predictor": {"window": 64, "stride": 32, "name": "ppm", "settings": {"order": 3}},
    "fingerprint": {"torch": "2.13.0"},
    "first": 1,
    "tokens": 9,
    "stream_bytes": 8,
    "residual_codec": "store",
    "residual_bytes": 3,
    "residual_decoded_bytes": 3,
    "text_bytes": 20,
    "text_sha256": "c" * 64,
}
FILE = Compressed(header=Header(**FIELDS), stream=b"code" * 2, residual=b"abc")


def sealed(body: bytes) -> bytes:
    return body + hashlib.sha256(body).digest()


def with_header(text: bytes) -> bytes:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    stored = deflate.compress(text) + deflate.flush()
    prefix = b"\x89QPZ\r\n\x1a\n" + b"\x01\x00" + len(stored).to_bytes(4, "little")
    return sealed(prefix + stored + FILE.stream + FILE.residual)


def test_a_file_comes_back() -> None:
    data = FILE.render()
    assert parse(data) == FILE
    assert FILE.render() == data
    assert with_header(json.dumps(FIELDS).encode()) != data
    assert parse(with_header(json.dumps(FIELDS).encode())) == FILE


def test_every_truncation_is_noticed() -> None:
    data = FILE.render()
    for length in range(len(data)):
        with pytest.raises(ArtifactError):
            parse(data[:length])


def test_every_changed_byte_is_noticed() -> None:
    data = FILE.render()
    for i in range(len(data)):
        changed = data[:i] + bytes([data[i] ^ 0x20]) + data[i + 1 :]
        with pytest.raises(ArtifactError):
            parse(changed)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    for start in (b"", FILE.render()[:14]):
        with pytest.raises(ArtifactError):
            parse(start + data)


def test_what_is_wrong_is_said() -> None:
    data = FILE.render()
    with pytest.raises(CorruptError, match="magic"):
        parse(b"hello")
    with pytest.raises(TruncatedError, match="missing"):
        parse(data[:-1])
    with pytest.raises(CorruptError, match="1 bytes too many"):
        parse(data + b"x")
    with pytest.raises(CorruptError, match="digest"):
        parse(data[:-40] + b"x" + data[-39:])
    with pytest.raises(UnsupportedError, match="version 2"):
        parse(sealed(PREFIX.pack(data[:8], 2, 0) + bytes(40)))
    with pytest.raises(TooLargeError, match="at most"):
        parse(sealed(PREFIX.pack(data[:8], 1, 1 << 20) + bytes(40)))


def test_a_bomb_in_the_header() -> None:
    with pytest.raises(CorruptError, match="inflate"):
        parse(with_header(b" " * (1 << 22)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", "A" * 64),
        ("tokenizer", "b" * 63),
        ("tokens", -1),
        ("tokens", 2.0),
        ("tokens", True),
        ("tokens", 20 * 64 + 1_025),
        ("residual_decoded_bytes", 20 * 4 + 1_025),
        ("text_bytes", (1 << 30) + 1),
        ("model_name", "tiny\x1b[2J"),
        ("model_name", "tiny\nfix: run this"),
        ("fingerprint", {"torch\u009b31m": "2.13.0"}),
        ("predictor", {"name": "ppm\u202e"}),
        ("predictor", {"name": "ppm", "settings": {"targets": ["q\x07"]}}),
        ("predictor", []),
        ("predictor", {"window": 0}),
        ("predictor", {"window": 16, "stride": 1 << 17}),
        ("fingerprint", {"torch": 2}),
        ("model_name", "x" * 600),
        ("more", 1),
    ],
)
def test_fields_of_another_kind(name: str, value: object) -> None:
    with pytest.raises(CorruptError, match="header") as caught:
        parse(with_header(json.dumps({**FIELDS, name: value}).encode()))
    assert len(caught.value.items) == 1


def test_a_bomb_in_the_residual() -> None:
    """3 bytes stored may be a few megabytes, not more."""
    fields = {**FIELDS, "text_bytes": 1 << 28, "residual_decoded_bytes": 1 << 24}
    parse(with_header(json.dumps(fields).encode()))
    fields["residual_decoded_bytes"] += 1
    with pytest.raises(CorruptError) as caught:
        parse(with_header(json.dumps(fields).encode()))
    assert "expands" in caught.value.items[0]


def test_a_missing_field_is_named() -> None:
    fields = {name: value for name, value in FIELDS.items() if name != "tokenizer"}
    with pytest.raises(CorruptError) as caught:
        parse(with_header(json.dumps(fields).encode()))
    assert caught.value.items == ("tokenizer: Field required",)
