"""What mixers are given, checked once for all of them, and cut into parts for compiled loops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from qpack.errors import ConfigError, DataError
from qpack.eval.predictor import LogProbs, Tokens

BLOCK_TOKENS = 4096
"""Tokens that one compiled call advances; tables have room for them beforehand."""

Advance = Callable[[LogProbs, NDArray[np.int64], NDArray[np.float64]], None]
"""(rows (b, V), targets (b,), scores (b,) to fill)"""


def in_parts(
    rows: LogProbs,  # (b, V)
    targets: Tokens,  # (b,)
    vocab_size: int,
    advance: Advance,
) -> NDArray[np.float64]:
    """(b,): what `advance` fills in, some tokens at a time. Raises as `check_block`."""
    rows = as_rows(rows)
    known = check_block(rows, targets, vocab_size)
    out = np.empty(len(known))
    for i in range(0, len(known), BLOCK_TOKENS):
        part = slice(i, i + BLOCK_TOKENS)
        advance(rows[part], known[part], out[part])
    return out


def check_vocab_size(vocab_size: int) -> None:
    """Raise `ConfigError` for a vocabulary in which there is nothing to choose."""
    if vocab_size < 2:
        raise ConfigError(f"a vocabulary of {vocab_size} tokens leaves nothing to predict")


def as_rows(rows: LogProbs) -> LogProbs:
    """`rows` as compiled functions take them: contiguous, writable float64."""
    return np.require(rows, np.float64, ["C", "W"])


def check_block(
    rows: LogProbs | None,  # (b, V), or nothing to check
    targets: Tokens,  # (b,)
    vocab_size: int,
) -> NDArray[np.int64]:
    """The targets as int64 (b,). Raises `DataError` unless both are of this vocabulary."""
    known = targets.astype(np.int64)
    if rows is not None and rows.shape != (len(known), vocab_size):
        raise DataError(
            f"rows of shape {rows.shape} for {len(known):,} tokens of {vocab_size:,}",
            hint="mix with the vocabulary of the base predictor",
        )
    if known.size and not (known.min() >= 0 and known.max() < vocab_size):
        beyond = sorted({int(token) for token in known if not 0 <= token < vocab_size})
        raise DataError(
            f"{len(beyond)} tokens are beyond the vocabulary of {vocab_size:,}",
            items=[str(token) for token in beyond],
        )
    return known


def check_row(row: LogProbs, vocab_size: int) -> LogProbs:
    """One row (V,) as compiled functions take it. Raises `DataError` for another vocabulary's."""
    rows = as_rows(row[None])
    check_block(rows, np.zeros(1, np.int64), vocab_size)
    first: LogProbs = rows[0]
    return first


def check_token(token: int, vocab_size: int) -> int:
    """`token`. Raises `DataError` where it is beyond the vocabulary."""
    return int(check_block(None, np.array([token]), vocab_size)[0])
