"""Segments as a whole: another decoder, exact bytes, damage, limits, and how long they are."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest

from qpack.codec.rans import decode, encode, estimate_bytes
from qpack.codec.rans.side import HEAD
from qpack.errors import CorruptError, TooLargeError
from qpack.trellis import STATES

from . import reference
from .samples import Matrix, entropy_bits, gaussian, path

SHAPES = [(40, 30), (0, 3), (70, 9), (1, 50), (50, 1), (3, 0), (70, 20)]


def mixed(seed: int = 0) -> tuple[list[Matrix], list[int]]:
    """Members with every kind of trellis and none, some without elements."""
    rng = np.random.default_rng(seed)
    trellis = [0, 4, 8, 0, *STATES[2:]]
    return [
        gaussian(rng, shape, states, scale=2.0, spread=1.0)
        for shape, states in zip(SHAPES, trellis, strict=True)
    ], trellis


@pytest.mark.parametrize("seed", range(3))
def test_a_decoder_written_from_the_format_agrees(seed: int) -> None:
    matrices, trellis = mixed(seed)
    data = encode(matrices, trellis)
    expected, states = reference.decode(data, SHAPES)
    assert states == trellis
    assert [matrix.tolist() for matrix in matrices] == expected
    decoded, found = decode(data, SHAPES, np.int16)
    assert found == trellis
    assert all(np.array_equal(a, b) for a, b in zip(decoded, matrices, strict=True))


GOLDEN = {
    "plain": (
        np.array([[1, 0], [-1, 0], [0, 2]], np.int8),
        0,
        "000115000000180000006360646870582d7a558b8101c86a6004130c8c4c003fb8a701",
    ),
    "trellis, escape": (
        path(np.array([[1, 0], [-1, 50], [0, 0]]), 4).astype(np.int8),
        4,
        "0001190000001e00000063626064687068506850606204d20e0c207e0323986030020000300501",
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_vectors(name: str) -> None:
    """The side block is compared as it decodes, as not every zlib deflates alike."""
    matrix, states, text = GOLDEN[name]
    golden, ours = bytes.fromhex(text), encode([matrix], [states])
    (decoded,), found = decode(golden, [matrix.shape], np.int8)
    assert found == [states]
    assert np.array_equal(decoded, matrix)
    assert coded(ours) == coded(golden)


def coded(segment: bytes) -> tuple[bytes, bytes, bytes]:
    """Lanes and classes, the decoded side block, states and words."""
    end = HEAD.size + HEAD.unpack_from(segment)[2]
    return segment[:2], zlib.decompress(segment[HEAD.size : end], -15), segment[end:]


def small() -> tuple[bytes, list[tuple[int, int]]]:
    rng = np.random.default_rng(5)
    matrices = [gaussian(rng, (6, 5), s, scale=2, spread=0) for s in (0, 8)]
    matrices[0][2, 3] = 3000
    return encode(matrices, [0, 8]), [(6, 5), (6, 5)]


def test_every_truncation_is_found() -> None:
    data, shapes = small()
    for end in range(len(data)):
        with pytest.raises(CorruptError):
            decode(data[:end], shapes, np.int16)
    with pytest.raises(CorruptError):
        decode(data + b"\0\0", shapes, np.int16)


@pytest.mark.parametrize("flip", [0x01, 0x80])
def test_every_changed_byte_is_found_or_harmless(flip: int) -> None:
    """Harmless: another way to say something, such as another deflate of the same side block."""
    data, shapes = small()
    found = 0
    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= flip
        try:
            decoded, _ = decode(bytes(flipped), shapes, np.int16)
            assert [matrix.shape for matrix in decoded] == shapes
        except CorruptError:
            found += 1
    assert found > 0.8 * len(data)


def test_other_shapes_or_another_dtype_are_found() -> None:
    data, _ = small()
    for shapes in ([(6, 5)], [(6, 5), (5, 6)], [(6, 5), (6, 6)], [(6, 5), (6, 5), (1, 1)]):
        with pytest.raises(CorruptError):
            decode(data, shapes, np.int16)
    with pytest.raises(CorruptError):
        decode(data, [(6, 5), (6, 5)], np.int8)  # 3000 is among them


def test_nothing_takes_nothing() -> None:
    for matrices in ([], [np.empty((0, 4), np.int8)]):
        data = encode(matrices, [0] * len(matrices))
        assert len(data) < 24
        assert decode(data, [m.shape for m in matrices], np.int8)[1] == [0] * len(matrices)


def test_a_constant_takes_its_tables_alone() -> None:
    matrix = np.full((300, 200), 7, np.int8)
    assert len(encode([matrix], [0])) < 64


def test_too_many_escapes_are_refused() -> None:
    rng = np.random.default_rng(0)
    wide = rng.integers(-32767, 32768, (2000, 400)).astype(np.int16)
    with pytest.raises(TooLargeError, match="another codec"):
        encode([wide], [0])
    with pytest.raises(TooLargeError, match="another codec"):
        estimate_bytes([wide], [0])


def test_too_many_rows_are_refused() -> None:
    with pytest.raises(TooLargeError, match="steps"):
        encode([np.zeros((1 << 20, 1), np.int8)], [0])


@pytest.mark.parametrize("states", [0, 8])
def test_one_scale_is_coded_at_its_entropy(states: int) -> None:
    """What the tables and lanes cost comes on top."""
    rng = np.random.default_rng(1)
    matrix = gaussian(rng, (1000, 400), states, scale=2.0, spread=0.0)
    if states:
        ideal = sum(entropy_bits(matrix[matrix & 1 == parity] >> 1) for parity in (0, 1)) / 8
    else:
        ideal = entropy_bits(matrix.reshape(-1)) / 8
    assert ideal < len(encode([matrix], [states])) < 1.001 * ideal + 3 * 32 + 100


def test_scales_of_rows_and_columns_are_used() -> None:
    """Within 0.5 % of what the symbols take if every scale were known."""
    rng = np.random.default_rng(2)
    rows, cols = 2 ** rng.normal(1, 1, 2000), 2 ** rng.normal(0, 0.5, 600)
    scales = np.outer(rows, cols)
    matrix = np.rint(rng.normal(size=scales.shape) * scales).astype(np.int16)
    known = known_scale_bits(matrix, scales) / 8
    size = len(encode([matrix], [0]))
    assert known < size < 1.01 * known
    assert size < 0.95 * entropy_bits(matrix.reshape(-1)) / 8


def known_scale_bits(matrix: Matrix, scales: np.ndarray) -> float:
    """Bits of rounded normal numbers, each with its own scale."""
    erf = np.vectorize(math.erf)
    low, high = ((matrix + half) / scales / math.sqrt(2) for half in (-0.5, 0.5))
    return float(-np.log2(np.maximum((erf(high) - erf(low)) / 2, 1e-300)).sum())


def test_estimates_are_near() -> None:
    rng = np.random.default_rng(3)
    matrices = [gaussian(rng, (1000, 500), s, scale=2.5, spread=0.4) for s in (0, 8, 32)]
    size = len(encode(matrices, [0, 8, 32]))
    assert abs(estimate_bytes(matrices, [0, 8, 32]) - size) < 0.0005 * size
