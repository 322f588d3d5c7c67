from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpack.errors import DataError, OutputExistsError
from qpack.tokens import check_vocab, read_shard, render_shard, sha256_file, write_shard


def shard_bytes(count: int, payload: bytes, *, magic: int = 20240520, version: int = 1) -> bytes:
    return struct.pack("<3i", magic, version, count).ljust(1024, b"\0") + payload


def test_layout_is_the_challenges(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_shard(path, np.array([1, 513, 65535], dtype=np.uint16))
    assert path.read_bytes() == shard_bytes(3, b"\x01\x00\x01\x02\xff\xff")


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=50))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, values: list[int]) -> None:
    path = tmp_path_factory.mktemp("shard") / "a.bin"
    path.write_bytes(render_shard(np.array(values, dtype=np.uint16)))
    tokens = read_shard(path)
    assert tokens.dtype == np.uint16
    assert tokens.tolist() == values


def test_a_shard_is_read_only(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(shard_bytes(1, b"\0\0"))
    with pytest.raises(ValueError, match="read-only"):
        read_shard(path)[0] = 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "shorter than a header"),
        (b"\0" * 1023, "shorter than a header"),
        (shard_bytes(1, b"\0\0", magic=20240521), "magic 20240521"),
        (shard_bytes(1, b"\0\0", version=2), "version 2"),
        (shard_bytes(0, b""), "0 tokens"),
        (shard_bytes(-1, b""), "-1 tokens"),
        (shard_bytes(2, b"\0\0"), "which is 1,028 B, and the file is 1,026 B"),
        (shard_bytes(1, b"\0\0\0"), "which is 1,026 B, and the file is 1,027 B"),
        (shard_bytes(1, b"\0\0\0\0"), "which is 1,026 B, and the file is 1,028 B"),
    ],
)
def test_bad_shards_are_named(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "bad.bin"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        read_shard(path)
    assert "bad.bin" in str(caught.value)


@pytest.mark.parametrize("name", ["missing.bin", "."])
def test_unreadable_paths(tmp_path: Path, name: str) -> None:
    for function in (read_shard, sha256_file):
        with pytest.raises(DataError, match="cannot read"):
            function(tmp_path / name)


def test_render_refuses_what_no_shard_can_hold() -> None:
    for tokens in (
        np.zeros(0, dtype=np.uint16),
        np.zeros((2, 2), dtype=np.uint16),
        np.zeros(2, dtype=np.int64),
    ):
        with pytest.raises(DataError):
            render_shard(tokens)


def test_write_never_overwrites_unasked(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    one, two = (np.array([value], dtype=np.uint16) for value in (1, 2))
    write_shard(path, one)
    with pytest.raises(OutputExistsError):
        write_shard(path, two)
    assert read_shard(path).tolist() == [1]
    write_shard(path, two, force=True)
    assert read_shard(path).tolist() == [2]


def test_vocab_limit_is_exclusive_and_the_worst_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qpack.tokens.CHUNK_TOKENS", 3)
    tokens = np.array([5, 0, 1, 2, 9, 3, 3, 3, 8], dtype=np.uint16)
    check_vocab(tokens, 10, "a.bin")
    with pytest.raises(DataError, match=r"2 of 9 tokens .* 8 \(largest 9, first at position 4\)"):
        check_vocab(tokens, 8, "a.bin")


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc" * 1000)
    assert sha256_file(path) == hashlib.sha256(b"abc" * 1000).hexdigest()
