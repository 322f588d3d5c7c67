"""What an artifact holds: quantized tensors and raw ones. numpy only, no torch.

Reconstruction is `float32(q) * row_step[:, None] * col_step[None, :]`, in that order, in float32.
A step is an integer code c on a logarithmic scale, `octave` codes to a doubling:

    step(c) = 2 ** (c / octave) = MANTISSA[(c * 64 / octave) mod 64] * 2 ** floor(c / octave)

with the 64 float32 constants of `MANTISSA_BITS`, so that every decoder computes the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESOLUTION = 64
"""Mantissas in the table; `octave` divides it."""

# float32 bit patterns of 2 ** (i / 64), i = 0..63: constants, because libm may differ by an ulp.
MANTISSA_BITS: tuple[int, ...] = (
    0x3F800000, 0x3F8164D2, 0x3F82CD87, 0x3F843A29, 0x3F85AAC3, 0x3F871F62, 0x3F88980F, 0x3F8A14D5,
    0x3F8B95C2, 0x3F8D1ADF, 0x3F8EA43A, 0x3F9031DC, 0x3F91C3D3, 0x3F935A2B, 0x3F94F4F0, 0x3F96942D,
    0x3F9837F0, 0x3F99E046, 0x3F9B8D3A, 0x3F9D3EDA, 0x3F9EF532, 0x3FA0B051, 0x3FA27043, 0x3FA43516,
    0x3FA5FED7, 0x3FA7CD94, 0x3FA9A15B, 0x3FAB7A3A, 0x3FAD583F, 0x3FAF3B79, 0x3FB123F6, 0x3FB311C4,
    0x3FB504F3, 0x3FB6FD92, 0x3FB8FBAF, 0x3FBAFF5B, 0x3FBD08A4, 0x3FBF179A, 0x3FC12C4D, 0x3FC346CD,
    0x3FC5672A, 0x3FC78D75, 0x3FC9B9BE, 0x3FCBEC15, 0x3FCE248C, 0x3FD06334, 0x3FD2A81E, 0x3FD4F35B,
    0x3FD744FD, 0x3FD99D16, 0x3FDBFBB8, 0x3FDE60F5, 0x3FE0CCDF, 0x3FE33F89, 0x3FE5B907, 0x3FE8396A,
    0x3FEAC0C7, 0x3FED4F30, 0x3FEFE4BA, 0x3FF28177, 0x3FF5257D, 0x3FF7D0DF, 0x3FFA83B3, 0x3FFD3E0C,
)  # fmt: skip
MANTISSA: NDArray[np.float32] = np.array(MANTISSA_BITS, dtype="<u4").view("<f4")

EXPONENT_MIN, EXPONENT_MAX = -126, 127
"""Steps are normal float32 numbers."""


def decode_steps(codes: NDArray[np.int16], octave: int) -> NDArray[np.float32]:
    """Steps of integer `codes` (any shape, int16): float32, exact and the same everywhere."""
    fine = codes.astype(np.int32) * (RESOLUTION // octave)
    return np.ldexp(MANTISSA[fine % RESOLUTION], fine // RESOLUTION).astype(np.float32)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class QuantizedTensor:
    """`integers * row_step[:, None] * col_step[None, :]`, reshaped to `shape`, float32."""

    name: str
    shape: tuple[int, ...]
    """Decoded shape; `rows * cols` elements. One dimension or none means one row."""
    integers: NDArray[np.int8] | NDArray[np.int16]
    """(rows, cols)"""
    row_codes: NDArray[np.int16]
    """(rows,)"""
    col_codes: NDArray[np.int16] | None = None
    """(cols,), or None where every column step is 1"""
    octave: int = 16
    """Step codes to a doubling: a power of two, 1 to 64."""
    trellis: int = 0
    """States of the trellis that the integers obey (`qpack.trellis`); 0 for none."""

    def dequantize(self) -> NDArray[np.float32]:
        """The decoded tensor, float32, `shape`."""
        out = self.integers.astype(np.float32)
        out *= decode_steps(self.row_codes, self.octave)[:, None]
        if self.col_codes is not None:
            out *= decode_steps(self.col_codes, self.octave)[None, :]
        return out.reshape(self.shape)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RawTensor:
    """A tensor stored as it is, in a safetensors dtype (`F16`, `BF16`, `F32`, `I64`, ...)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    data: bytes
    """little-endian, row-major"""


StoredTensor = QuantizedTensor | RawTensor


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddedFile:
    """A file carried and counted inside the artifact: source code or a tokenizer."""

    name: str
    role: str
    """`code` or `tokenizer`"""
    data: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """Everything an artifact holds, before encoding and after decoding."""

    tensors: tuple[StoredTensor, ...]
    aliases: dict[str, str]
    """tied tensors: other name -> stored name"""
    metadata: dict[str, str]
    """`architecture`, `config` (JSON), `tokenizer_sha256`, ..."""
    files: tuple[EmbeddedFile, ...] = ()


def num_elements(shape: tuple[int, ...]) -> int:
    """Elements of a tensor of `shape` (Python integers: never wraps)."""
    return math.prod(shape)
