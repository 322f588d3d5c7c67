"""R8: a few hundred bytes that would fill the memory. Refused quickly and in little memory."""

from __future__ import annotations

import lzma
import resource
import struct
import subprocess
import sys
import time

import brotli
import numpy as np
import pytest
import zstandard

from qpack.codec.registry import codecs
from qpack.errors import ArtifactError
from qpack.tensors import Contents
from tests.samples import artifact, both, forge, quantized, take_apart

MIB = 1 << 20
ZEROS = bytes(64 * MIB)
DECLARED = 4096


def zstd_frame(content_size: int | None, window_log: int) -> bytes:
    """A Zstandard frame header that claims this, with one tiny block."""
    magic, block = b"\x28\xb5\x2f\xfd", struct.pack("<I", 1 | 1 << 1 | 8 << 3)[:3] + b"\0"
    if content_size is None:
        return magic + bytes([0, (window_log - 10) << 3]) + block
    return magic + bytes([0xE0]) + struct.pack("<Q", content_size) + block


def bombs() -> dict[str, tuple[str, bytes]]:
    xz = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 64 * MIB}]
    return {
        "brotli of zeros": ("brotli", brotli.compress(ZEROS, quality=9, lgwin=24)),
        "zstd of zeros": ("zstd", zstandard.ZstdCompressor(level=3).compress(ZEROS)),
        "zstd that claims 1 TiB": ("zstd", zstd_frame(1 << 40, 0)),
        "zstd with a 2 GiB window": ("zstd", zstd_frame(None, 31)),
        "xz of zeros": ("lzma", lzma.compress(ZEROS, preset=0)),
        "xz with a 64 MiB dictionary": ("lzma", lzma.compress(b"x", filters=xz)),
        "raw LZMA2 of zeros": (
            "lzma-raw",
            lzma.compress(ZEROS, format=lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2}]),
        ),
    }


BOMBS = bombs()


@pytest.mark.parametrize("name", BOMBS)
def test_refused_at_once(name: str) -> None:
    codec, data = BOMBS[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    with pytest.raises(ArtifactError):
        codecs()[codec].decode(data, decoded_bytes=DECLARED)
    assert time.perf_counter() - start < 1
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < 64 * 1024


@pytest.mark.parametrize("name", BOMBS)
def test_refused_in_a_file_by_both_decoders(name: str) -> None:
    codec, data = BOMBS[name]
    contents = Contents(tensors=(quantized("w", 64, 64),), aliases={}, metadata={})
    header, segments = take_apart(artifact(contents, codec=codec))
    assert header["streams"][0][5] == DECLARED
    header["streams"][0][2] = codecs()[codec].id
    segments[0] = data
    assert both(forge(header, segments)) is None


CHILD = """
import resource, sys
from qpack.artifact.reader import read
from qpack.errors import ArtifactError
import brotli, zstandard, numpy
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
with open("/proc/self/statm") as statm:
    virtual = int(statm.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (virtual + (64 << 20),) * 2)
refused = 0
for path in sys.argv[1:]:
    try:
        read(path)
    except ArtifactError:
        refused += 1
print(refused)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_AS and /proc")
def test_refused_within_64_mib_of_address_space(tmp_path) -> None:
    paths = []
    contents = Contents(tensors=(quantized("w", 64, 64),), aliases={}, metadata={})
    for number, (codec, data) in enumerate(BOMBS.values()):
        header, segments = take_apart(artifact(contents, codec=codec))
        header["streams"][0][2] = codecs()[codec].id
        segments[0] = data
        paths.append(tmp_path / f"{number}.qpk")
        paths[-1].write_bytes(forge(header, segments))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, paths)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(len(paths))]


def test_a_file_may_not_expand_more_than_1024_fold() -> None:
    contents = Contents(tensors=(quantized("w", 64, 64),), aliases={}, metadata={})
    header, segments = take_apart(artifact(contents, codec="brotli"))
    rows = 1 << 20
    header["tensors"][0][1] = [rows, 64]
    header["streams"][0][5] = rows * 64
    header["streams"][1][5] = rows * 2
    segments[0] = brotli.compress(np.zeros(rows * 64, np.int8).tobytes(), quality=5)
    segments[1] = brotli.compress(np.zeros(rows, np.int16).tobytes(), quality=5)
    for row in header["streams"]:
        row[2:4] = [3, 0]
    assert both(forge(header, segments)) is None
