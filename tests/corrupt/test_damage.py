"""R3, R4, R6: truncation, flips, and bytes that belong to nothing. None may pass."""

from __future__ import annotations

import numpy as np
import pytest

from qpack.artifact.reader import open_artifact, read
from qpack.errors import ArtifactError, CorruptError, TruncatedError
from qpack.tensors import Contents
from tests.samples import artifact, quantized, raw, varied


def sized(num_bytes: int) -> bytes:
    """An artifact of about `num_bytes`, most of them in brotli and stored segments."""
    noise = np.random.default_rng(0).bytes(num_bytes // 2)
    rows = num_bytes // 80
    contents = Contents(
        tensors=(quantized("w", rows, 64), raw("b", (len(noise),), "U8", noise)),
        aliases={"tied": "w"},
        metadata={"model_name": "damage"},
    )
    data = artifact(contents)
    assert 0.8 * num_bytes < len(data) <= num_bytes
    return data


def refuses_every_truncation(data: bytes) -> None:
    for length in range(len(data)):
        with pytest.raises(ArtifactError):
            read(data[:length])


def refuses_every_flip(data: bytes) -> None:
    damaged = bytearray(data)
    for position in range(len(data)):
        for bit in range(8):
            damaged[position] ^= 1 << bit
            try:
                read(bytes(damaged))
            except ArtifactError:
                damaged[position] ^= 1 << bit
            else:
                pytest.fail(f"bit {bit} of byte {position} flipped and nothing was said")


def test_every_truncation_of_4_kib() -> None:
    refuses_every_truncation(sized(4096))


def test_every_flip_of_4_kib() -> None:
    refuses_every_flip(sized(4096))


@pytest.mark.slow
def test_every_truncation_of_64_kib() -> None:
    refuses_every_truncation(sized(65_536))


@pytest.mark.slow
def test_every_flip_of_64_kib() -> None:
    refuses_every_flip(sized(65_536))


@pytest.mark.parametrize("form", ["qpk", "pyz"])
@pytest.mark.parametrize("count", [1, 2, 1024])
def test_bytes_before_or_after_are_refused(form: str, count: int) -> None:
    data = artifact(varied(), form=form)
    for extra in (bytes(count), b"\xff" * count, data[:count]):
        with pytest.raises(ArtifactError):
            open_artifact(data + extra)
        with pytest.raises(ArtifactError):
            open_artifact(extra + data)


def test_two_artifacts_in_one_file_are_refused() -> None:
    qpk, pyz = artifact(varied()), artifact(varied(), form="pyz")
    for first in (qpk, pyz):
        for second in (qpk, pyz):
            with pytest.raises(ArtifactError):
                read(first + second)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 27, 28, 59])
def test_very_short_files(length: int) -> None:
    data = artifact(varied())[:length]
    with pytest.raises(TruncatedError if length else CorruptError):
        read(data)


def test_what_is_damaged_is_named() -> None:
    data = bytearray(artifact(varied()))
    header = open_artifact(bytes(data))
    for index in (0, 1):
        data[header.offsets()[index]] ^= 1
    with pytest.raises(CorruptError, match="digest mismatch") as caught:
        read(bytes(data))
    assert len(caught.value.items) == 2
    assert "blocks.0.fc.weight" in str(caught.value)


def test_random_erasures_swaps_and_insertions() -> None:
    data, rng = artifact(varied(), form="pyz"), np.random.default_rng(0)
    for _ in range(300):
        start, stop = sorted(rng.integers(0, len(data) + 1, 2).tolist())
        piece = data[start : min(stop, start + 64)]
        rest = data[start + len(piece) :]
        for changed in (
            data[:start] + rest,
            data[:start] + piece[::-1] + rest,
            data[:start] + piece + piece + rest,
            data[:start] + bytes(len(piece)) + rest,
        ):
            if changed != data:
                with pytest.raises(ArtifactError):
                    read(changed)
