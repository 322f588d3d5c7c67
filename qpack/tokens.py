"""Token shards in the layout of the Parameter Golf challenge.

A shard is 256 little-endian int32 (magic, version, token count, zeros) followed by that many
little-endian uint16 tokens. Source: `techniques.md` 7.1 and the challenge's own loader.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qpack.errors import DataError

MAGIC = 20240520
VERSION = 1
HEADER_BYTES = 256 * 4
TOKEN_BYTES = 2
WHERE_FROM = "give a shard in the challenge's .bin format: qpack data tokenize makes one of text"

CHUNK_TOKENS = 1 << 22
"""Tokens examined at a time, so that a memory-mapped shard never has to fit in memory."""


def read_shard(path: Path) -> NDArray[np.uint16]:
    """Memory-map the tokens of the shard `path`: (tokens,) uint16, read-only.

    Raises `DataError` when the file is missing, is no shard, is empty, or is not exactly as long
    as its header says.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = np.frombuffer(file.read(HEADER_BYTES), dtype=np.uint8)
    except OSError as error:
        raise DataError(
            f"cannot read token shard {path}: {error.strerror}",
            hint=WHERE_FROM if isinstance(error, FileNotFoundError) else None,
        ) from error
    if head.size < HEADER_BYTES:
        raise DataError(
            f"{path} is not a token shard: {size:,} B, shorter than a header", hint=WHERE_FROM
        )
    magic, version, count = (int(word) for word in head.view("<i4")[:3])
    if magic != MAGIC or version != VERSION:
        raise DataError(
            f"{path} is not a token shard: magic {magic}, version {version}"
            f" (expected {MAGIC}, {VERSION})",
            hint=WHERE_FROM,
        )
    expected = HEADER_BYTES + TOKEN_BYTES * count
    if count <= 0 or size != expected:
        raise DataError(
            f"{path} is damaged: its header says {count:,} tokens, which is {expected:,} B,"
            f" and the file is {size:,} B",
            hint="fetch or write the shard again",
        )
    return np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(count,))


def render_shard(tokens: NDArray[np.uint16]) -> bytes:
    """The whole file for `tokens`, (tokens,) uint16. Raises `DataError` when there are none."""
    if tokens.ndim != 1 or tokens.size == 0:
        raise DataError(f"a shard needs a flat, non-empty array of tokens, got {tokens.shape}")
    if tokens.dtype != np.uint16:
        raise DataError(f"a shard holds uint16 tokens, got {tokens.dtype}")
    return render_header(tokens.size) + tokens.astype("<u2").tobytes()


def render_header(num_tokens: int) -> bytes:
    """The header of a shard of that many tokens, which follow it as little-endian uint16."""
    header = np.zeros(HEADER_BYTES // 4, dtype="<i4")
    header[:3] = MAGIC, VERSION, num_tokens
    return header.tobytes()


def write_shard(path: Path, tokens: NDArray[np.uint16], *, force: bool = False) -> None:
    """Write `tokens`, (tokens,) uint16, to the shard `path`, whole or not at all.

    Raises `OutputExistsError` when `path` exists and `force` is not given.
    """
    from qpack.artifact.writer import write_atomic

    write_atomic(path, render_shard(tokens), force=force)


def check_vocab(tokens: NDArray[np.integer[Any]], vocab_size: int, path: Path | str) -> int:
    """The largest token. Raises `DataError` unless all are below `vocab_size`; `path` names them in
    it."""
    bad, worst, first = 0, 0, -1
    for start in range(0, tokens.size, CHUNK_TOKENS):
        chunk = tokens[start : start + CHUNK_TOKENS]
        beyond = np.flatnonzero(chunk >= vocab_size)
        if beyond.size:
            first = first if bad else start + int(beyond[0])
            bad += beyond.size
        worst = max(worst, int(chunk.max()))
    if bad:
        raise DataError(
            f"{path}: {bad:,} of {tokens.size:,} tokens are beyond the vocabulary of"
            f" {vocab_size:,} (largest {worst:,}, first at position {first:,})",
            hint="give the shard that was written with this model's tokenizer",
        )
    return worst


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of the file `path`. Raises `DataError` when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def count_tokens(tokens: NDArray[np.uint16], vocab_size: int) -> NDArray[np.int64]:
    """How often each of the pieces is there, (vocab_size,)."""
    counts = np.zeros(vocab_size, np.int64)
    for start in range(0, len(tokens), CHUNK_TOKENS):  # numpy counts a copy in 64 bits
        counts += np.bincount(tokens[start : start + CHUNK_TOKENS], minlength=vocab_size)
    return counts
