"""The estimate is near the file that is really encoded."""

from __future__ import annotations

import pytest

from qpack.artifact.encode import encode
from qpack.artifact.estimate import estimate_bytes, tensor_entropy_bytes
from qpack.artifact.writer import file_bytes
from qpack.codec.registry import resolve
from qpack.tensors import Contents
from tests.samples import quantized, raw, varied


def large(trellis: int = 0) -> Contents:
    """Three layers whose q and k share their columns, and a norm."""
    tensors = [
        quantized(f"blocks.{i}.{n}", 192, 256, col_codes=True, octave=64, trellis=trellis, seed=i)
        for i in range(3)
        for n in "qk"
    ]
    norm = raw("norm", (512,), "F32", bytes(2048))
    return Contents(tensors=(*tensors, norm), aliases={}, metadata={"architecture": "gpt"})


@pytest.mark.parametrize("form", ["qpk", "pyz"])
@pytest.mark.parametrize("trellis", [0, 8])
def test_rans(form: str, trellis: int) -> None:
    codecs = resolve(["rans", "brotli"])
    real = file_bytes(encode(large(trellis), codecs=codecs), form)
    assert estimate_bytes(large(trellis), codecs, form) == pytest.approx(real, rel=2e-3)


@pytest.mark.parametrize("names", [["brotli"], ["zstd", "store"]])
def test_codecs_of_bytes(names: list[str]) -> None:
    codecs = resolve(names)
    real = file_bytes(encode(large(), codecs=codecs), "qpk")
    assert estimate_bytes(large(), codecs, "qpk") == pytest.approx(real, rel=0.06)


def test_every_kind_of_contents() -> None:
    codecs = resolve(None)
    real = file_bytes(encode(varied(), codecs=codecs), "pyz")
    assert estimate_bytes(varied(), codecs, "pyz") == pytest.approx(real, rel=0.02)


def test_parities_are_free() -> None:
    plain, coded = (quantized("w", 256, 512, qmax=60, trellis=t) for t in (0, 8))
    bits = 8 * (tensor_entropy_bytes(plain) - tensor_entropy_bytes(coded)) / (256 * 512)
    assert bits == pytest.approx(1, abs=0.15)
