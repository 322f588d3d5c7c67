"""Each codec: exact round trips, and ArtifactError for everything else."""

from __future__ import annotations

import contextlib
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qpack.codec import brotli
from qpack.codec.base import ByteCodec
from qpack.codec.registry import byte_codecs, codecs, resolve
from qpack.codec.xz import dict_bytes
from qpack.codec.zstd import window_log
from qpack.errors import ArtifactError, SetupError

ALL = byte_codecs(resolve(None))
COMPRESSING = ALL[1:]
NOISE = np.random.default_rng(0).integers(0, 256, 3000, dtype=np.uint8).tobytes()
SYMBOLS = np.random.default_rng(1).normal(0, 2.4, 4096).astype(np.int8).tobytes()
LONG = (SYMBOLS * 100)[:300_001]


def name(codec: ByteCodec) -> str:
    return codec.name


@pytest.mark.parametrize("codec", ALL, ids=name)
@pytest.mark.parametrize("data", [b"", b"x", bytes(5000), NOISE, SYMBOLS, LONG], ids=len)
def test_round_trip(codec: ByteCodec, data: bytes) -> None:
    stored = codec.encode(data)
    assert codec.decode(stored, decoded_bytes=len(data)) == data
    assert codec.encode(data) == stored


@settings(max_examples=60)
@given(data=st.binary(max_size=300))
@pytest.mark.parametrize("codec", ALL, ids=name)
def test_round_trip_of_anything(codec: ByteCodec, data: bytes) -> None:
    assert codec.decode(codec.encode(data), decoded_bytes=len(data)) == data


@pytest.mark.parametrize("codec", ALL, ids=name)
@pytest.mark.parametrize("data", [SYMBOLS, bytes(5000)], ids=len)
def test_any_other_declared_size_is_refused(codec: ByteCodec, data: bytes) -> None:
    stored = codec.encode(data)
    for wrong in (0, 1, len(data) - 1, len(data) + 1, 2 * len(data), 1 << 20):
        with pytest.raises(ArtifactError):
            codec.decode(stored, decoded_bytes=wrong)


@pytest.mark.parametrize("codec", COMPRESSING, ids=name)
def test_every_truncation_is_refused(codec: ByteCodec) -> None:
    data = SYMBOLS[:600]
    stored = codec.encode(data)
    for length in range(len(stored)):
        with pytest.raises(ArtifactError):
            codec.decode(stored[:length], decoded_bytes=len(data))


@pytest.mark.parametrize("codec", COMPRESSING, ids=name)
def test_trailing_bytes_are_refused(codec: ByteCodec) -> None:
    stored = codec.encode(SYMBOLS)
    for tail in (b"\0", b"xx", bytes(100), stored):
        with pytest.raises(ArtifactError):
            codec.decode(stored + tail, decoded_bytes=len(SYMBOLS))


@pytest.mark.parametrize("codec", COMPRESSING, ids=name)
def test_noise_is_refused_or_decodes_to_the_declared_size(codec: ByteCodec) -> None:
    rng = np.random.default_rng(2)
    for _ in range(300):
        data = rng.integers(0, 256, int(rng.integers(0, 60)), dtype=np.uint8).tobytes()
        with contextlib.suppress(ArtifactError):
            assert len(codec.decode(data, decoded_bytes=100)) == 100


@pytest.mark.parametrize(
    ("decoded_bytes", "dictionary", "window"),
    [(0, 4096, 10), (1, 4096, 10), (4096, 4096, 12), (4097, 8192, 13), (1 << 40, 1 << 30, 30)],
)
def test_memory_follows_the_declared_size(decoded_bytes: int, dictionary: int, window: int) -> None:
    assert dict_bytes(decoded_bytes) == dictionary
    assert window_log(decoded_bytes) == window


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("brotli", "zstandard"):
        monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.usefixtures("no_packages")
@pytest.mark.parametrize(("codec", "package"), [("brotli", "brotli"), ("zstd", "zstandard")])
def test_a_missing_package_is_named(codec: str, package: str) -> None:
    found = codecs()[codec]
    assert isinstance(found, ByteCodec)
    for call in (lambda: found.encode(b"x"), lambda: found.decode(b"x", decoded_bytes=1)):
        with pytest.raises(SetupError, match=f"pip install {package}"):
            call()
    with pytest.raises(SetupError, match=f"pip install {package}"):
        resolve([codec])
    standard = [c.name for c in resolve(None, stdlib_only=True)]
    assert standard == ["store", "lzma", "lzma-raw", "rans"]


@pytest.mark.parametrize(("shrinks_to", "quality"), [(0.9, 11), (0.9999, 10), (1.1, 10)])
def test_brotli_takes_the_time_where_a_sample_says_so(
    monkeypatch: pytest.MonkeyPatch, shrinks_to: float, quality: int
) -> None:
    def compress(data: bytes, asked: int) -> bytes:
        if len(data) > brotli.SAMPLE_BYTES:
            return bytes([asked])
        return bytes(int(10_000 * (shrinks_to if asked == 11 else 1)))

    monkeypatch.setattr(brotli.Brotli, "_compress", staticmethod(compress))
    assert brotli.Brotli().encode(bytes(brotli.SHORT_BYTES + 1)) == bytes([quality])
    assert len(brotli.Brotli().encode(b"short")) == int(10_000 * min(shrinks_to, 1))
